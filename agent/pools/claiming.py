"""Claiming and releasing disks for a person: the wish is written to the store, and what comes of it is followed.

The agent that owns the disk does the work; several processes may use the store.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from agent.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound
from agent.model import ConditionStatus, Disk, DiskDriver, DiskPhase, DiskSpec, Snapshot, Tier, Volume
from agent.pools.access import FILE, kind
from agent.pools.disk_driver import DRIVER
from agent.pools.disk_records import DiskRecords
from agent.pools.pools import RELEASED, USABLE
from agent.store.interface import Store

POLL_S = 0.05
STALE_S = 3.0
"""A refusal from before the wish counts only when the agent has had so long to say something new."""

Report = Callable[[Disk], None]


class Claiming:
    """`report` is called with a disk's record whenever its phase has changed."""

    def __init__(self, store: Store, report: Report, timeout_s: float) -> None:
        self._store = store
        self._records = DiskRecords(store, "")
        self._report = report
        self._timeout_s = timeout_s

    async def find(self, wanted: str) -> Disk:
        """As `find_disk`, but no file."""
        disk = await find_disk(self._store, wanted)
        if kind(disk) == FILE:
            raise InvalidArgument("DISK", f"{wanted!r} is a file", "file disks are named by `file_disks` only")
        return disk

    def require_claimable(self, disk: Disk) -> None:
        """FailedPrecondition with all reasons, unless the disk can be claimed as far as is known."""
        if disk.status.pool.uuid or disk.status.eligible:
            return
        reasons = "; ".join(disk.status.reasons) or "it is missing"
        raise FailedPrecondition(f"{_named(disk)}: {reasons}")

    async def claim(self, disk: Disk, tier: Tier | None, driver: DiskDriver | None = None) -> Disk:
        """Claim, and return when the pool is there. One that is refused is as before: FailedPrecondition says why.

        FailedPrecondition, too, as soon as somebody else releases it.
        """
        before, asked_at = disk.spec, time.time()
        wanted = replace(
            before, claimed=True, tier_override=tier or before.tier_override, driver=driver or before.driver
        )
        disk = await self._wish(disk, wanted)
        disk = await self._follow(disk, lambda now: _is_ready(now) or _refusal(now, asked_at, USABLE, DRIVER) != "")
        if disk.spec.claimed is not True:
            raise FailedPrecondition(f"{_named(disk)} was released by somebody else meanwhile; it is not in service")
        if not _is_ready(disk):
            if not disk.status.pool.uuid or disk.spec.driver not in (None, disk.status.driver):
                await self._wish(disk, before)
            raise FailedPrecondition(f"{_named(disk)}: {_refusal(disk, asked_at, USABLE, DRIVER)}")
        return disk

    async def require_empty(self, disk: Disk) -> None:
        """FailedPrecondition naming the volumes and snapshots that live on the disk."""
        volumes = [
            each.meta.name
            for each in await self._store.list(Volume)
            if any(replica.disk == disk.meta.name for replica in each.spec.placement)
        ]
        snapshots = [each.meta.name for each in await self._store.list(Snapshot) if each.spec.disk == disk.meta.name]
        living = sorted(volumes + snapshots)
        if living:
            more = f" and {len(living) - 10} more" if len(living) > 10 else ""
            raise FailedPrecondition(f"{_named(disk)} holds {', '.join(living[:10])}{more}: delete them first")

    async def release(self, disk: Disk) -> Disk:
        """Release, and return when the disk is blank, with the driver that it has.

        FailedPrecondition, and nothing changed, while it is in use, and as soon as somebody else claims it.
        """
        before, asked_at = disk.spec, time.time()
        disk = await self._wish(disk, replace(before, claimed=False, driver=None))
        disk = await self._follow(disk, lambda now: _is_released(now) or _refusal(now, asked_at, RELEASED) != "")
        if disk.spec.claimed:
            raise FailedPrecondition(f"{_named(disk)} was claimed by somebody else meanwhile; it is in service")
        if not _is_released(disk):
            await self._wish(disk, before)
            raise FailedPrecondition(_refusal(disk, asked_at, RELEASED))
        return disk

    async def _wish(self, disk: Disk, spec: DiskSpec) -> Disk:
        return await self._records.change(disk, lambda now: replace(now, spec=spec))

    async def _follow(self, disk: Disk, is_over: Callable[[Disk], bool]) -> Disk:
        """The record as soon as `is_over` says so, or somebody else wishes something else."""
        wished = disk.spec.claimed
        deadline, told = time.monotonic() + self._timeout_s, None
        while True:
            if disk.status.phase is not told:
                self._report(disk)
                told = disk.status.phase
            if is_over(disk) or disk.spec.claimed != wished:
                return disk
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"{_named(disk)} is still {disk.status.phase} after {self._timeout_s:g} s; the agent goes on"
                )
            await asyncio.sleep(POLL_S)
            found = await self._records.get(disk.meta.name)
            if found is None:
                raise NotFound("disk", disk.meta.name)
            disk = found


async def find_disk(store: Store, wanted: str) -> Disk:
    """The disk meant by an identity, a path or name in /dev, a link, or a serial number."""
    disks = [disk for disk in await store.list(Disk) if _is_meant(wanted, disk)]
    if not disks:
        raise NotFound("disk", wanted)
    if len(disks) > 1:
        raise InvalidArgument("DISK", f"{wanted!r} fits {', '.join(disk.meta.name for disk in disks)}", "give one")
    return disks[0]


def _is_meant(wanted: str, disk: Disk) -> bool:
    status = disk.status
    names = {disk.meta.name, status.path, status.path.removeprefix("/dev/"), status.serial, status.wwid, *status.links}
    real = str(Path(wanted).resolve()) if wanted.startswith("/dev/") else ""
    return wanted in names - {""} or (real != "" and real == status.path)


def _named(disk: Disk) -> str:
    return f"{disk.status.path} ({disk.meta.name})"


def _is_ready(disk: Disk) -> bool:
    has_driver = disk.spec.driver in (None, disk.status.driver)
    return disk.status.phase is DiskPhase.READY and disk.spec.claimed is True and has_driver


def _is_released(disk: Disk) -> bool:
    return not disk.status.pool.uuid and disk.status.phase in (DiskPhase.AVAILABLE, DiskPhase.INELIGIBLE)


def _refusal(disk: Disk, asked_at: float, *conditions: str) -> str:
    """What the agent says against the wish, in one of these conditions; empty: nothing yet."""
    since = asked_at if time.time() < asked_at + STALE_S else 0.0
    said = (
        each.message
        for each in disk.status.conditions
        if each.type in conditions and each.status is ConditionStatus.FALSE and each.changed_at >= since
    )
    return next(said, "")
