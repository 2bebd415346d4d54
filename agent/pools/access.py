"""How the target reaches a disk: the base bdev under its pool. One implementation for each kind of disk and driver."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from agent.disks import files
from agent.model import Disk, DiskDriver

LOAD_TIMEOUT_S = 600.0
"""How long a pool may take to load: after a crash every metadata page is read (see docs/decisions/0002)."""

FILE, KERNEL, USERSPACE = "file", DiskDriver.KERNEL.value, DiskDriver.USERSPACE.value


Tell = Callable[[int], Awaitable[None]]


class DiskAccess(Protocol):
    """One way to reach disks. Everything can be repeated; raises QuarryError with what a person can do about it."""

    async def attach(self, disk: Disk) -> None:
        """Ensure the bdev `disk.bdev_name` over this very disk, with the size that the disk has now.

        The target loads a pool that lies there, and so writes to it: Refused for a disk that is neither blank nor
        carries its own pool, Unavailable when it is not there. Returns before the pool is loaded
        (`bdev.wait_for_examine`).
        """
        ...

    async def require_blank(self, disk: Disk) -> None:
        """Raise FailedPrecondition unless nothing lies on the disk. Called immediately before a pool is made on it.

        In phase Formatting what was begun earlier may lie there: half a pool of ours, and nothing else.
        """
        ...

    async def zero(self, disk: Disk, start: int, end: int, tell: Tell) -> bool:
        """Make these bytes of the attached disk read as zeroes, which must be nobody's; False when that takes writing.

        Called once `require_blank` has passed, or for what a disk has gained. `tell`: see `agent.host.blkid.zero`.
        """
        ...

    async def detach(self, disk: Disk) -> None:
        """Take the bdev away, its pool and volumes with it; the data stay. Also of a disk that is gone."""
        ...

    async def explain(self, disk: Disk) -> str:
        """Why the pool that should be on a disk that was attached and detached is not loaded, in words."""
        ...

    async def wipe(self, disk: Disk) -> None:
        """Make a detached disk blank that carries nothing but its own, empty pool."""
        ...


def kind(disk: Disk) -> str:
    """Which access a disk needs: `file`, or who drives it now."""
    return FILE if disk.status.transport == files.TRANSPORT else disk.status.driver


NOT_LOADED = "it is there, but the target could not load it: see the target's log. It is tried again"
