"""The regular files that the configuration names as disks: their records, and following them while the agent runs."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from agent.config.settings import FileDisk
from agent.disks import files
from agent.errors import AlreadyExists, InvalidArgument, Unavailable
from agent.model import Condition, ConditionStatus, Disk, DiskPhase, DiskSpec, DiskStatus, Meta
from agent.pools.access import FILE, kind
from agent.pools.disk_conditions import ATTENTION, with_health, without_condition
from agent.pools.disk_records import DiskRecords
from agent.pools.pools import RELEASED, Pools
from agent.pools.why import Why
from agent.tasks.background import Background
from agent.tasks.work import Work

log = logging.getLogger(__name__)

LOOK_S = 2.0
RETRY_MAX_S = 10.0

Seen = tuple[int, int, int] | None
"""Device, inode and size of a file; None: it is not there."""


class FileDiskRecords:
    """The Disk of each file in `configured`. A file is known by its path, and by its pool when it was moved."""

    def __init__(self, records: DiskRecords, configured: Sequence[FileDisk]) -> None:
        self._records = records
        self._configured = configured

    async def all(self) -> list[Disk]:
        """Those on record, configured or not."""
        return [each for each in await self._records.list() if kind(each) == FILE]

    async def register(self) -> None:
        """Record every file disk. One that cannot be used says why; one that is gone stays known: volumes may be on it.

        Raises InvalidArgument when two of them are one file.
        """
        _refuse_one_file_twice(self._configured)
        known = await self.all()
        names = {(await self._register(each, known)).meta.name for each in self._configured}
        _refuse_one_file_twice(self._configured)  # those that were made just now, too
        for gone in (each for each in known if each.meta.name not in names):
            log.error("disk %s (%s) is no longer configured", gone.meta.name, gone.status.path)
            await self._change(gone, _not_configured)

    async def restore(self) -> list[Disk]:
        """Record those again whose record was deleted or emptied meanwhile. Returns all on record."""
        known = await self.all()
        paths = {each.status.path for each in known}
        lost = [each for each in self._configured if str(each.path.resolve()) not in paths]
        return [*known, *[await self._register(each, known) for each in lost]]

    async def register_again(self, disk: Disk) -> Disk:
        """The record of a disk whose file could not be made or used before, after another try."""
        for each in self._configured:
            if str(each.path.resolve()) == disk.status.path:
                return await self._register(each, [disk])
        return disk

    async def _register(self, wanted: FileDisk, known: Sequence[Disk]) -> Disk:
        path = wanted.path.resolve()
        before = await self._find(path, known)
        if before is not None and before.status.pool.uuid and not path.exists():
            # An empty file in its place would look like the disk, without the volumes.
            log.error("file disk %s is not there", path)
            return await self._change(before, _not_there)
        try:
            disk = await asyncio.to_thread(files.prepare, wanted, self._records.node)
        except InvalidArgument as error:
            log.error("file disk %s cannot be used: %s", path, error.problem)
            disk = _unusable(wanted, self._records.node, error.problem)
        if before is None:
            return await self._create(disk)
        if before.status.path != str(path):
            log.warning("disk %s has moved from %s to %s", before.meta.name, before.status.path, path)
        return await self._change(before, lambda now: _renewed(now, disk))

    async def _find(self, path: Path, known: Sequence[Disk]) -> Disk | None:
        """The record of the disk at `path`: of a file that was there before, or of one that was moved there."""
        if here := next((each for each in known if each.status.path == str(path)), None):
            return here
        pool = await asyncio.to_thread(files.pool_uuid, path)
        moved = (each for each in known if pool and each.status.pool.uuid == pool)
        return next((each for each in moved if _look_at(Path(each.status.path)) is None), None)

    async def _create(self, disk: Disk) -> Disk:
        try:
            return await self._records.create(replace(disk, meta=replace(disk.meta, created_at=time.time())))
        except AlreadyExists:  # its status was emptied
            found = await self._records.get(disk.meta.name)
            if found is None:
                raise
            return await self._change(found, lambda now: _renewed(now, disk))

    async def _change(self, disk: Disk, change: Callable[[Disk], Disk]) -> Disk:
        try:
            return await self._records.change(disk, change)
        except Unavailable as error:  # of the store: a start is not to fail for a filesystem that is full
            log.error("disk %s stays as it is on record: %s", disk.meta.name, error)
            return disk


class FileDiskKeeper:
    """Follows the files while the agent runs.

    `is_ready`: whether the target serves; `audit_soon` is called when a pool came or went.
    """

    def __init__(
        self,
        records: DiskRecords,
        registry: FileDiskRecords,
        pools: Pools,
        is_ready: Callable[[], bool],
        audit_soon: Callable[[], None],
    ) -> None:
        self._records = records
        self._registry = registry
        self._pools = pools
        self._is_ready = is_ready
        self._audit_soon = audit_soon
        self._seen: dict[str, Seen] = {}
        self._work = Work("file-disk", self._settle, parallel=1, retry_max_s=RETRY_MAX_S)
        self._background = Background()

    # --- Companion ---

    async def start(self) -> None:
        self._background.every("file-disks", LOOK_S, self._look)

    async def stop(self) -> None:
        await self._background.stop()
        await self._work.stop()

    async def audited(self) -> None:
        """Those that are not served as they should be get another try."""
        self._work.stir(*(each.meta.name for each in await self._registry.all() if not _is_well(each)))

    # --- following ---

    async def _look(self) -> None:
        for disk in await self._registry.restore():
            seen = await asyncio.to_thread(_look_at, Path(disk.status.path))
            is_new = disk.meta.name not in self._seen  # it may be another file than the one that was opened
            is_to_be_tried = seen is not None and disk.status.phase in (DiskPhase.AVAILABLE, DiskPhase.MISSING)
            if is_new or is_to_be_tried or self._seen.get(disk.meta.name, seen) != seen:
                self._work.stir(disk.meta.name)
            self._seen[disk.meta.name] = seen
            if disk.spec.claimed is False and disk.status.phase is not DiskPhase.MISSING:
                await self._records.change(disk, lambda now: with_health(now, _configured()))

    async def _settle(self, name: str) -> None:
        disk = await self._records.get(name)
        if disk is None or not self._is_ready():
            return  # `audited` comes when the target is ready
        seen = await asyncio.to_thread(_look_at, Path(disk.status.path))
        if disk.status.phase is DiskPhase.MISSING:
            disk = await self._registry.register_again(disk)  # it may be back
            if disk.status.phase is DiskPhase.MISSING:
                return
        if seen is not None:
            disk = await self._records.change(disk, lambda now: _sized(now, seen[2]))
        elif not disk.status.pool.uuid:
            disk = await self._registry.register_again(disk)  # its folder may be there now
        was_served = self._pools.is_served(disk)
        try:
            await self._pools.ensure(disk)
        finally:
            if was_served != self._pools.is_served(disk):
                self._audit_soon()


def _refuse_one_file_twice(configured: Sequence[FileDisk]) -> None:
    """InvalidArgument when two paths lead to one file: two pools would overwrite each other."""
    first: dict[tuple[int, int], Path] = {}
    for each in configured:
        seen = _look_at(each.path)
        if seen is not None and (other := first.setdefault(seen[:2], each.path)) != each.path:
            raise InvalidArgument("file_disks", f"{other} and {each.path} are one file", "name it once")


def _look_at(path: Path) -> Seen:
    try:
        found = os.stat(path)  # noqa: PTH116 - as a thread's call
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size


def _is_well(disk: Disk) -> bool:
    return disk.status.phase is DiskPhase.READY and not any(each.type == ATTENTION for each in disk.status.conditions)


def _renewed(disk: Disk, fresh: Disk) -> Disk:
    """The record with what is seen now. What was learned of the pool stays, as does the mark of a begun creation."""
    kept = disk.status.phase is DiskPhase.FORMATTING
    phase = DiskPhase.FORMATTING if kept else fresh.status.phase
    conditions = without_condition(disk.status.conditions, RELEASED)
    status = replace(fresh.status, phase=phase, pool=disk.status.pool, conditions=conditions)
    spec = replace(fresh.spec, adopt=disk.spec.adopt, discard=disk.spec.discard)
    return replace(disk, spec=spec, status=replace(status, unrecorded=disk.status.unrecorded))


def _sized(disk: Disk, size_bytes: int) -> Disk:
    return replace(disk, status=replace(disk.status, size_bytes=size_bytes))


def _not_there(disk: Disk) -> Disk:
    return _missing(disk, f"{disk.status.path} is not there: bring it back, or forget the disk")


def _not_configured(disk: Disk) -> Disk:
    gone = _missing(disk, "it is not configured any more (`file_disks`)")
    return replace(gone, spec=replace(gone.spec, claimed=False))


def _missing(disk: Disk, why: str) -> Disk:
    return replace(disk, status=replace(disk.status, phase=DiskPhase.MISSING, message=why))


def _unusable(wanted: FileDisk, node: str, why: str) -> Disk:
    return Disk(
        meta=Meta(files.disk_id(wanted.path, node)),
        spec=DiskSpec(claimed=True, tier_override=wanted.tier),
        status=DiskStatus(
            node=node,
            path=str(wanted.path.resolve()),
            model="regular file",
            transport=files.TRANSPORT,
            block_bytes=files.BLOCK_BYTES,
            tier=wanted.tier,
            phase=DiskPhase.FAILED,
            reasons=(why,),
            message=why,
        ),
    )


def _configured() -> Condition:
    text = "a file disk is in service as long as it is configured: take it out of `file_disks` and restart the agent"
    return Condition(RELEASED, ConditionStatus.FALSE, Why.IN_USE.value, text, time.time())
