"""Forgetting a disk that is lost for good, for a person: its record goes, and what comes of that is followed.

Several processes may use the store; the agent that runs on it gives up what lay on the disk
(agent.volumes.keepers.lost_data).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from agent.errors import Conflict, DeadlineExceeded, FailedPrecondition
from agent.model import Disk, DiskPhase, Snapshot, SnapshotPhase, Volume, VolumePhase
from agent.store.interface import Store

POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Losses:
    """What lies on a disk."""

    volumes: tuple[Volume, ...]
    snapshots: tuple[Snapshot, ...]

    @property
    def pending(self) -> int:
        """How many are not given up yet."""
        volumes = sum(each.status.phase is not VolumePhase.FAILED for each in self.volumes)
        return volumes + sum(each.status.phase is not SnapshotPhase.FAILED for each in self.snapshots)


def require_forgettable(disk: Disk) -> None:
    """FailedPrecondition for a disk that serves, is in work, or has nothing to be given up."""
    named = f"{disk.status.path} ({disk.meta.name})"
    match disk.status.phase:
        case DiskPhase.READY:
            raise FailedPrecondition(
                f"{named} is in service and holds its data: delete what lies on it and release it instead "
                "(`quarry disks release`)"
            )
        case DiskPhase.FORMATTING | DiskPhase.RELEASING:
            raise FailedPrecondition(f"{named} is {disk.status.phase}: wait until that is done")
        case DiskPhase.FAILED | DiskPhase.MISSING:
            return
    if not disk.status.pool.uuid:
        raise FailedPrecondition(f"{named} has no pool: there is nothing to forget")


class Forgetting:
    """`report` is called with what is left whenever that changes."""

    def __init__(self, store: Store, report: Callable[[int], None], timeout_s: float) -> None:
        self._store = store
        self._report = report
        self._timeout_s = timeout_s

    async def losses(self, disk: Disk) -> Losses:
        """What is lost with the disk, by name."""
        name = disk.meta.name
        volumes = (each for each in await self._store.list(Volume) if name in {at.disk for at in each.spec.placement})
        snapshots = (each for each in await self._store.list(Snapshot) if each.spec.disk == name)
        return Losses(
            tuple(sorted(volumes, key=lambda each: each.meta.name)),
            tuple(sorted(snapshots, key=lambda each: each.meta.name)),
        )

    async def forget(self, disk: Disk) -> None:
        """Remove the record, and return when what lay there has failed. FailedPrecondition: the disk is back."""
        while True:
            now = await self._store.get(Disk, disk.meta.name)
            if now is None:
                break
            require_forgettable(now)
            try:
                await self._store.delete(Disk, now.meta.name, now.meta.version)
                break
            except Conflict:
                continue
        await self._follow(disk)

    async def _follow(self, disk: Disk) -> None:
        deadline, told = time.monotonic() + self._timeout_s, 0
        while (left := (await self.losses(disk)).pending) > 0:
            if left != told:
                self._report(left)
                told = left
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"{left} volumes and snapshots of disk {disk.meta.name} are not given up after "
                    f"{self._timeout_s:g} s; the agent goes on, see its log"
                )
            await asyncio.sleep(POLL_S)
