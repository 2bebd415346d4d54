"""Data structures at fixed offsets: dataclasses whose fields say where they lie, little-endian as all of NVMe."""

from __future__ import annotations

import dataclasses
import struct
from typing import Any, ClassVar, Self

_POSITION = "position"


def at(offset: int, code: str, default: Any = 0, pad: bytes = b" ") -> Any:
    """A field at byte `offset` with `struct` code `code`; text ("20s" with a str default) is filled up with `pad`."""
    return dataclasses.field(default=default, metadata={_POSITION: (offset, struct.Struct("<" + code), pad)})


class Layout:
    """Base of such dataclasses (frozen, keyword-only). `SIZE` is the length of the structure in bytes."""

    SIZE: ClassVar[int]

    def pack(self) -> bytes:
        """The structure as bytes; everything that no field names is zero."""
        buffer = bytearray(self.SIZE)
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            offset, code, pad = field.metadata[_POSITION]
            value = getattr(self, field.name)
            if isinstance(value, str):
                value = value.encode("ascii", "replace")[: code.size].ljust(code.size, pad)
            code.pack_into(buffer, offset, value)
        return bytes(buffer)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The structure from its bytes; raises ValueError when there are too few."""
        if len(data) < cls.SIZE:
            raise ValueError(f"{cls.__name__} takes {cls.SIZE} bytes, got {len(data)}")
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            offset, code, _ = field.metadata[_POSITION]
            (value,) = code.unpack_from(data, offset)
            if isinstance(field.default, str):
                value = value.split(b"\0", 1)[0].decode("ascii", "replace").rstrip(" ")
            values[field.name] = value
        return cls(**values)
