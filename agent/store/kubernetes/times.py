"""Times: seconds since the epoch as RFC 3339, without loss."""

from __future__ import annotations

import time
from datetime import datetime


def to_text(seconds: float) -> str:
    """Nine digits: more than a float of this century holds, so that the way back gives the same one."""
    whole, _, fraction = f"{seconds:.9f}".partition(".")
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(int(whole)))}.{fraction}Z"


def from_text(text: str) -> float:
    """Raises ValueError for what is no RFC 3339 time."""
    head, point, rest = text.partition(".")
    digits = rest.rstrip("Zz") if point else ""
    zone = "+00:00" if text[-1:] in ("Z", "z") else ""
    if "+" in rest:
        digits, _, offset = rest.partition("+")
        zone = f"+{offset}"
    elif "-" in rest:
        digits, _, offset = rest.partition("-")
        zone = f"-{offset}"
    moment = datetime.fromisoformat(f"{head.rstrip('Zz')}{zone}")
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return float(f"{int(moment.timestamp())}.{digits or '0'}")
