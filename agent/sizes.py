"""Sizes as people write them, in bytes."""

from __future__ import annotations

import re

from agent.errors import InvalidArgument, shorten

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

_SIZE = re.compile(r"(\d{1,30}(?:\.\d{1,30})?)\s*([KMGTP]?)(iB|B|)", re.ASCII)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_SIZE_REMEDY = "write a number with a unit, like 20GiB, 512MiB or 1TB"


def parse_size(text: str) -> int:
    """Bytes of a size like `20GiB` (powers of 1024), `20GB` (powers of 1000), `4096` or `4096B`.

    Raises InvalidArgument for anything else, for a fraction of a byte, and beyond 2^63 - 1.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[2] and not match[3]):
        raise InvalidArgument("size", f"{shorten(text)!r} is not a size", _SIZE_REMEDY)
    number, power, suffix = match[1], _POWERS[match[2]], match[3]
    whole, _, fraction = number.partition(".")
    unit = (1024 if suffix == "iB" else 1000) ** power
    size: int
    size, rest = divmod(int(whole + fraction) * unit, 10 ** len(fraction))
    if rest:
        raise InvalidArgument("size", f"{shorten(text)!r} is not a whole number of bytes", _SIZE_REMEDY)
    if size >= 1 << 63:
        raise InvalidArgument("size", f"{shorten(text)!r} is beyond 2^63 - 1 bytes", "choose a smaller size")
    return size
