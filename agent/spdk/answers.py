"""How typed calls read what the target answers and write what it asks for."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from agent.errors import InvalidArgument, Unavailable

MIB = 1024 * 1024

T = TypeVar("T")


def read(method: str, result: Any, form: type[T]) -> T:
    """`result` of `method` as `form`. Unavailable when it has another form: the peer is not the SPDK we know."""
    try:
        return msgspec.convert(result, form)
    except msgspec.ValidationError as error:
        raise Unavailable(f"{method}: the answer has an unexpected form: {error}") from error


def mebibytes(field: str, size_bytes: int) -> int:
    """`size_bytes` for a parameter that counts MiB. InvalidArgument unless it is a positive multiple of 1 MiB."""
    if size_bytes <= 0 or size_bytes % MIB:
        raise InvalidArgument(field, f"{size_bytes} bytes", "use a positive multiple of 1 MiB (1048576 bytes)")
    return size_bytes // MIB


def given(**params: Any) -> dict[str, Any]:
    """The params that are not None: what is left out takes the target's default."""
    return {name: value for name, value in params.items() if value is not None}
