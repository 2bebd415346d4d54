"""Regular files as disks, served by Linux AIO."""

from __future__ import annotations

import asyncio
from pathlib import Path

from agent.disks import files
from agent.errors import FailedPrecondition, RpcError, Unavailable
from agent.host import holders
from agent.model import Disk, DiskPhase
from agent.pools.access import LOAD_TIMEOUT_S, NOT_LOADED, Tell
from agent.pools.pool_size import shrunk
from agent.pools.why import Refused, Why
from agent.spdk import bdev
from agent.spdk.client import Rpc


class FileAccess:
    """Implements `DiskAccess` for regular files."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc
        self._opened: dict[str, tuple[int, int] | None] = {}
        """Device and inode of the file behind each bdev, as far as they were seen."""

    async def attach(self, disk: Disk) -> None:
        path = Path(disk.status.path)
        size_bytes = await asyncio.to_thread(files.measure, path)
        found = await bdev.get(self._rpc, disk.bdev_name)
        if found is None:
            self._opened.pop(disk.bdev_name, None)
        elif why := await self._why_lost(disk, path, size_bytes):
            raise Refused(
                Why.REMOVED,
                f"{path} {why}, and the target still has it open: all that is on it is gone when the target starts "
                "anew. Copy what is needed from its volumes now",
            )
        if size_bytes is None:
            raise Refused(Why.POOL_LOST, f"{disk.status.path} is not there: bring it back, or forget the disk")
        if not disk.status.pool.uuid and size_bytes < files.MIN_BYTES:
            raise Refused(
                Why.INELIGIBLE,
                f"{disk.status.path} has only {size_bytes} bytes, too few for a pool: make it larger or remove it",
            )
        if why := shrunk(disk, size_bytes):
            raise Refused(Why.SHRUNK, why)
        if found is None:
            await self._create(disk)
            self._opened[disk.bdev_name] = await asyncio.to_thread(files.inode, path)
        elif size_bytes // disk.status.block_bytes * disk.status.block_bytes > found.size_bytes:
            await bdev.aio_rescan(self._rpc, disk.bdev_name)

    async def _why_lost(self, disk: Disk, path: Path, size_bytes: int | None) -> str:
        """Why the file at `path` is not the one that the target has open; "" when it is, as far as can be seen."""
        if size_bytes is None:
            return "was removed"
        now = await asyncio.to_thread(files.inode, path)
        if self._opened.setdefault(disk.bdev_name, now) != now or await asyncio.to_thread(holders.has_lost, path):
            return "was replaced by another file"
        return ""

    async def _create(self, disk: Disk) -> None:
        try:
            await bdev.aio_create(
                self._rpc, disk.bdev_name, disk.status.path, disk.status.block_bytes, timeout_s=LOAD_TIMEOUT_S
            )
        except RpcError as error:
            if await bdev.get(self._rpc, disk.bdev_name) is None:
                raise Unavailable(f"the target cannot open {disk.status.path}: {error.message}") from error

    async def require_blank(self, disk: Disk) -> None:
        if disk.status.phase is DiskPhase.FORMATTING:
            return
        path = Path(disk.status.path)
        try:
            await asyncio.to_thread(files.require_blank, path)
        except FailedPrecondition as error:
            await self.detach(disk)  # who has the file open then is somebody else
            if (why := await self._whose_pool(path)) == "":
                raise
            raise Refused(Why.OTHER_POOL, why) from error

    async def zero(self, disk: Disk, start: int, end: int, tell: Tell) -> bool:
        """All of a new disk was read, and what a file gains is zeroes."""
        return True

    async def detach(self, disk: Disk) -> None:
        try:
            await bdev.aio_delete(self._rpc, disk.bdev_name)
        except RpcError:
            if await bdev.get(self._rpc, disk.bdev_name) is not None:
                raise

    async def explain(self, disk: Disk) -> str:
        path = Path(disk.status.path)
        if users := await asyncio.to_thread(holders.programs, path):
            return f"{path} is in use by {', '.join(users)}"
        return NOT_LOADED if await self._whose_pool(path) else f"{path} carries no pool any more"

    async def wipe(self, disk: Disk) -> None:
        """A file is not given back: who no longer needs it removes it."""

    async def _whose_pool(self, path: Path) -> str:
        """What there is to say of a file that carries a pool which the target did not load; "": it carries none."""
        pool = await asyncio.to_thread(files.pool_uuid, path)
        if not pool:
            return ""
        if users := await asyncio.to_thread(holders.programs, path):
            return f"{path} carries a pool that is in use by {', '.join(users)}: end it, or name another file"
        return (
            f"{path} carries pool {pool}, which this target could not load: it may have been cut short, or "
            "be the copy of another disk. It is left alone; name another file, or bring back what it was"
        )
