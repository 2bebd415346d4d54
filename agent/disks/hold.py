"""Block devices held exclusively, so that no mount, mkfs, RAID or volume manager takes what the agent is working on."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

from agent.errors import FailedPrecondition, Unavailable
from agent.host import holders

OPEN_TIMEOUT_S = 30.0


class Hold:
    """An exclusive open (O_EXCL), until `close` or the end of the process.

    It keeps out whoever asks for the same: the kernel's filesystems and drivers, mkfs, mdadm, LVM. The target, which
    opens the device without it, is not kept out; nor is `dd`. While it lasts, the device's name is not given away.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.number = os.fstat(descriptor).st_rdev

    @classmethod
    async def take(cls, path: str) -> Hold:
        """Open the device. FailedPrecondition while somebody has it, Unavailable when it cannot be opened."""
        try:
            return cls(await asyncio.wait_for(asyncio.to_thread(_open, path), OPEN_TIMEOUT_S))
        except TimeoutError:
            raise Unavailable(f"{path} did not open within {OPEN_TIMEOUT_S:g} s") from None
        except OSError as error:
            if error.errno == errno.EBUSY:
                told = await asyncio.to_thread(holders.describe, Path(path))
                raise FailedPrecondition(told or f"{path} is in use by the kernel: see `lsblk {path}`") from error
            raise Unavailable(f"{path} cannot be opened: {error.strerror}") from error

    def is_of(self, path: str) -> bool:
        """Whether `path` is now the node of the device that is held."""
        try:
            return os.stat(path).st_rdev == self.number  # noqa: PTH116 - st_rdev only
        except OSError:
            return False

    def close(self) -> None:
        """Let others have it. Again: nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _open(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK)
