"""Names of the lvols that a pool has for itself. They are nobody's data."""

from __future__ import annotations

import re

_HELD = re.compile(r"zero-[0-9a-f]{32}")
_PROBE = re.compile(r"probe-[0-9]")


def held_name(token: str) -> str:
    """Name of an lvol that holds free space until it is zeroed; `token`: 32 hexadecimal digits."""
    return "zero-" + token


def is_held_name(text: str) -> bool:
    """Whether `text` names such an lvol. They are nobody's data."""
    return _HELD.fullmatch(text) is not None


def probe_name(number: int) -> str:
    """Name of an lvol that exists for a moment, to see whether a metadata page is left; `number`: 0 to 9."""
    return f"probe-{number}"


def is_probe_name(text: str) -> bool:
    """Whether `text` names such an lvol. They hold nothing."""
    return _PROBE.fullmatch(text) is not None
