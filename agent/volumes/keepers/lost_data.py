"""Has everything given up that lies on a disk whose record was deleted, and the target let go of the disk."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from agent.model import Disk, Snapshot, SnapshotPhase, Volume, VolumePhase
from agent.pools.lost_disks import LostDisks
from agent.pools.pools import Pools
from agent.store.interface import EventType, Store
from agent.tasks.background import Background
from agent.tasks.work import Work

log = logging.getLogger(__name__)


class LostData:
    """Has everything settled that lies on lost disks.

    `settle_volume` and `settle_snapshot` are called with names, `audit_soon` when a disk is lost.
    """

    def __init__(
        self,
        store: Store,
        pools: Pools,
        lost: LostDisks,
        settle_volume: Callable[[str], None],
        settle_snapshot: Callable[[str], None],
        audit_soon: Callable[[], None],
    ) -> None:
        self._store = store
        self._pools = pools
        self._lost = lost
        self._settle_volume = settle_volume
        self._settle_snapshot = settle_snapshot
        self._audit_soon = audit_soon
        self._gone: dict[str, Disk] = {}
        self._work = Work("lost-disk", self._let_go)
        self._background = Background()

    async def start(self) -> None:
        self._background.keep("lost-disks", self._follow)

    async def stop(self) -> None:
        await self._background.stop()
        await self._work.stop()

    async def audited(self) -> None:
        """Look again at what lies on lost disks: records may have gone while nobody followed them."""
        volumes, snapshots = await self._store.list(Volume), await self._store.list(Snapshot)
        used = {place.disk for each in volumes for place in each.spec.placement}
        lost = await self._among(used | {each.spec.disk for each in snapshots})
        for volume in volumes:
            is_told = volume.status.phase is VolumePhase.FAILED and not volume.meta.deleting
            if not is_told and any(place.disk in lost for place in volume.spec.placement):
                self._settle_volume(volume.meta.name)
        for snapshot in snapshots:
            is_told = snapshot.status.phase is SnapshotPhase.FAILED and not snapshot.meta.deleting
            if not is_told and snapshot.spec.disk in lost:
                self._settle_snapshot(snapshot.meta.name)

    async def _among(self, names: Iterable[str]) -> set[str]:
        return {name for name in names if not self._pools.serves(name) and await self._lost.why(name)}

    async def _follow(self) -> None:
        async for event in self._store.watch(Disk):
            if event.type is EventType.DELETED and event.resource is not None:
                self._gone[event.resource.meta.name] = event.resource
                self._work.stir(event.resource.meta.name)
            elif event.resource is None:
                self._audit_soon()

    async def _let_go(self, name: str) -> None:
        disk = self._gone.get(name)
        if disk is not None and await self._pools.forget(disk):
            log.warning("disk %s (%s) is forgotten: what lay on it is given up", name, disk.status.path)
            self._audit_soon()
        self._gone.pop(name, None)
