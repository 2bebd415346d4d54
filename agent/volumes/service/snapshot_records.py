"""The records of snapshots: what one can be taken of, and writing down that it is to be taken."""

from __future__ import annotations

import time

from agent.errors import FailedPrecondition, NotFound, ResourceExhausted, Unavailable
from agent.model import Meta, Snapshot, SnapshotSpec, Volume, VolumePhase
from agent.pools.ledger import Ledger
from agent.store.interface import Store
from agent.volumes.rules.names import is_volume_id
from agent.volumes.service.lineage import Lineage, is_made


class SnapshotRecords:
    """Adds records, counted in the ledger and known to the lineage."""

    def __init__(self, store: Store, ledger: Ledger, lineage: Lineage) -> None:
        self._store = store
        self._ledger = ledger
        self._lineage = lineage

    async def source(self, volume_id: str) -> Volume:
        """The volume, which has data. Raises NotFound, FailedPrecondition, Unavailable."""
        volume = await self._store.get(Volume, volume_id) if is_volume_id(volume_id) else None
        if volume is None or volume.meta.deleting:
            raise NotFound("volume", volume_id)
        if volume.status.phase is VolumePhase.FAILED:
            raise FailedPrecondition(f"volume {volume_id} has failed: {volume.status.message}")
        if not is_made(volume):
            raise Unavailable(f"volume {volume_id} is still being created; repeat the call when it is")
        return volume

    async def add(self, csi_name: str, volume: Volume, *, owner: str = "", group: str = "") -> Snapshot:
        """Count a snapshot on the volume's disk and write it down. ResourceExhausted: there is no room for it."""
        place, size, kind = volume.spec.placement[0], volume.spec.size_bytes, volume.spec.provisioning
        pool = self._ledger.pool(place.disk)
        if pool is None:
            raise Unavailable(
                f"disk {place.disk} of volume {volume.meta.name} is not ready; repeat the call when it is"
            )
        self._ledger.require_space(place.disk)
        if size > self._ledger.room(pool, kind):
            raise ResourceExhausted(
                f"disk {place.disk} has no room for a snapshot of volume {volume.meta.name}: it counts as a {kind} "
                f"volume of {size} bytes, and {self._ledger.room(pool, kind)} are left"
            )
        name = self._lineage.free_id(csi_name)
        self._ledger.reserve(name, place.disk, size, kind)
        asked = volume.spec.requested_bytes
        spec = SnapshotSpec(csi_name, volume.meta.name, place.node, place.disk, size, kind, owner, group, asked)
        try:
            snapshot = await self._store.create(Snapshot(Meta(name, created_at=time.time()), spec))
        except BaseException:
            self._ledger.release(name)
            raise
        self._lineage.add(snapshot)
        return snapshot
