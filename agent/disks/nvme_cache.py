"""The volatile write cache of an NVMe controller, whoever drives it (NVM Express Base 2.0).

The feature is of the controller as a whole, and goes back to its default when the controller is reset, unless it was
saved, which not all can (5.27.1: Save).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from agent.errors import Unavailable
from agent.host.nvme_admin import Command, Send

_IDENTIFY, _SET_FEATURES, _GET_FEATURES = 0x06, 0x09, 0x0A
_CONTROLLER = 0x01
"""CNS of Identify: the controller's own structure (figure 275)."""
_CONTROLLER_BYTES = 4096
_VWC = 525
"""Byte of that structure; bit 0: there is one."""
_VOLATILE_WRITE_CACHE = 0x06
"""Feature identifier (5.27.1.4); bit 0 of its value: it is on."""
_SAVE = 1 << 31


@dataclass(frozen=True, slots=True)
class Found:
    """`problem`: why the cache is still on after it was to be switched off."""

    present: bool
    on: bool = False
    problem: str = ""


Act = Callable[[Send], Awaitable[Found]]
"""`look` or `switch_off`."""


async def look(send: Send) -> Found:
    """Ask for it. Raises what `send` raises, and Unavailable when the controller answers with an error."""
    answer = await send(Command(_IDENTIFY, cdw10=_CONTROLLER, reads=_CONTROLLER_BYTES))
    if answer.status or len(answer.data) <= _VWC:
        raise Unavailable(f"the controller does not identify itself (status {answer.status:#x})")
    if not answer.data[_VWC] & 1:
        return Found(present=False)
    answer = await send(Command(_GET_FEATURES, cdw10=_VOLATILE_WRITE_CACHE))
    if answer.status:
        raise Unavailable(f"the controller does not tell whether its write cache is on (status {answer.status:#x})")
    return Found(present=True, on=bool(answer.result & 1))


async def switch_off(send: Send) -> Found:
    """Switch it off, saved if the controller can save it, and read it back. Raises as `look`."""
    found = await look(send)
    if not found.on:
        return found
    for save in (_SAVE, 0):
        answer = await send(Command(_SET_FEATURES, cdw10=_VOLATILE_WRITE_CACHE | save, cdw11=0))
        if not answer.status:
            break
    found = await look(send)
    if not found.on:
        return found
    why = f"the controller refuses to switch it off (status {answer.status:#x})" if answer.status else "it stayed on"
    return Found(present=True, on=True, problem=why)
