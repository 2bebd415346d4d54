"""NVMe commands past the block layer, to a controller that the kernel drives (linux/nvme_ioctl.h)."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.errors import FailedPrecondition, NotFound, Unavailable

_ADMIN_CMD = 3 << 30 | 72 << 16 | ord("N") << 8 | 0x41  # _IOWR('N', 0x41, struct nvme_passthru_cmd)
_PASSTHRU = struct.Struct("=BBH3I2Q10I")
"""opcode, flags, rsvd1; nsid, cdw2, cdw3; metadata, addr; their lengths, cdw10 to cdw15, timeout_ms, result."""


@dataclass(frozen=True, slots=True)
class Command:
    """An administrative command (NVM Express Base 2.0, 5). `reads`: bytes that come back."""

    opcode: int
    nsid: int = 0
    cdw10: int = 0
    cdw11: int = 0
    reads: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """`status`: code and type as in figure 93, without the phase bit; 0 is success. `result`: dword 0."""

    status: int
    result: int = 0
    data: bytes = b""


class Send(Protocol):
    """One way to a controller. Raises QuarryError when the command did not get there."""

    async def __call__(self, command: Command) -> Answer: ...


def to_controller(device: Path) -> Send:
    """The way to a controller that the kernel drives, like /dev/nvme0; needs CAP_SYS_ADMIN.

    The kernel's own time limit holds (nvme_core.admin_timeout, 60 s). NotFound, FailedPrecondition, Unavailable.
    """

    async def send(command: Command) -> Answer:
        return await asyncio.to_thread(_send, device, command)

    return send


def _send(device: Path, command: Command) -> Answer:
    data = ctypes.create_string_buffer(command.reads) if command.reads else None
    address = ctypes.addressof(data) if data is not None else 0
    request = bytearray(
        _PASSTHRU.pack(
            *(command.opcode, 0, 0, command.nsid, 0, 0, 0, address, 0, command.reads),
            *(command.cdw10, command.cdw11, 0, 0, 0, 0, 0, 0),
        )
    )
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = fcntl.ioctl(descriptor, _ADMIN_CMD, request)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise NotFound("NVMe controller", str(device)) from None
    except PermissionError as error:
        raise FailedPrecondition(f"{device} takes no commands: {error.strerror}; run this as root") from error
    except OSError as error:
        raise Unavailable(f"{device} did not answer: {error.strerror}") from error
    return Answer(status & 0x7FF, _PASSTHRU.unpack(request)[-1], data.raw if data is not None else b"")
