"""Whether the kernel's clock is kept right by somebody."""

from __future__ import annotations

import ctypes
import sys

_TIMEX_BYTES = 256
"""struct timex of adjtimex(2) is 208 bytes on 64-bit Linux; all of it 0: only read."""
_STATUS_OFFSET = 40
_STA_UNSYNC = 0x0040


def is_synchronized() -> bool | None:
    """What the kernel was told last (adjtimex(2), STA_UNSYNC); None when it does not say."""
    timex = (ctypes.c_char * _TIMEX_BYTES)()
    try:
        result = ctypes.CDLL(None, use_errno=True).adjtimex(timex)
    except (OSError, AttributeError):
        return None
    if result < 0:
        return None
    status = int.from_bytes(timex.raw[_STATUS_OFFSET : _STATUS_OFFSET + 4], sys.byteorder)
    return not status & _STA_UNSYNC
