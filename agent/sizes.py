"""Sizes as people write them, in bytes."""

from __future__ import annotations

import re

from agent.errors import InvalidArgument, shorten

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

SOCKET_PATH_MAX_BYTES = 107
"""sun_path of sockaddr_un, unix(7), without its NUL."""

_SIZE = re.compile(r"(\d{1,30}(?:\.\d{1,30})?)\s*([KMGTP]?)(iB|B|)", re.ASCII)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_SIZE_REMEDY = "write a number with a unit, like 20GiB, 512MiB or 1TB"


_QUANTITY = re.compile(r"(\d{1,30}(?:\.\d{1,30})?)(?:([KMGTP])i|([kMGTP])|)", re.ASCII)
_QUANTITY_REMEDY = "write a quantity like 100Mi, 1.5Gi or 104857600"


def parse_quantity(text: str) -> int:
    """Bytes of a quantity as Kubernetes writes them: `100Mi` (powers of 1024), `100M` (powers of 1000) or `104857600`.

    Raises InvalidArgument for anything else, for a fraction of a byte, and beyond 2^63 - 1.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise InvalidArgument("quantity", f"{shorten(text)!r} is not a number of bytes", _QUANTITY_REMEDY)
    binary, decimal = match[2], match[3]
    unit = 1024 ** _POWERS[binary] if binary else 1000 ** _POWERS[(decimal or "").upper()]
    return _scaled(match[1], unit, "quantity", text, _QUANTITY_REMEDY)


def parse_size(text: str) -> int:
    """Bytes of a size like `20GiB` (powers of 1024), `20GB` (powers of 1000), `4096` or `4096B`.

    Raises InvalidArgument for anything else, for a fraction of a byte, and beyond 2^63 - 1.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[2] and not match[3]):
        raise InvalidArgument("size", f"{shorten(text)!r} is not a size", _SIZE_REMEDY)
    number, power, suffix = match[1], _POWERS[match[2]], match[3]
    return _scaled(number, (1024 if suffix == "iB" else 1000) ** power, "size", text, _SIZE_REMEDY)


def gib(size_bytes: int) -> str:
    """A size for a sentence, in GiB."""
    return f"{size_bytes / GIB:.6g} GiB"


def _scaled(number: str, unit: int, what: str, text: str, remedy: str) -> int:
    whole, _, fraction = number.partition(".")
    scale: int = 10 ** len(fraction)
    size, rest = divmod(int(whole + fraction) * unit, scale)
    if rest:
        raise InvalidArgument(what, f"{shorten(text)!r} is not a whole number of bytes", remedy)
    if size >= 1 << 63:
        raise InvalidArgument(what, f"{shorten(text)!r} is beyond 2^63 - 1 bytes", f"choose a smaller {what}")
    return size
