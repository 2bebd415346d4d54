"""Volumes and snapshots that a disk brings with it: found in its pool without a record, they get one.

A disk keeps data, ids, sizes and what stands on what. Names, parameters, limits and who had a volume published stay
behind in the database of its former node. A volume's id is a hash of its name, so a CreateVolume with that name
completes its record (`CreateVolume.completed`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from agent.errors import Busy
from agent.model import (
    Disk,
    DiskPhase,
    Meta,
    Provisioning,
    Replica,
    ReplicaStatus,
    Snapshot,
    SnapshotPhase,
    SnapshotSpec,
    SnapshotStatus,
    Volume,
    VolumePhase,
    VolumeSpec,
    VolumeStatus,
)
from agent.pools.access import FILE, kind
from agent.pools.disk_records import DiskRecords
from agent.pools.ledger import Ledger
from agent.spdk import bdev
from agent.spdk.client import Rpc
from agent.store.interface import Store
from agent.tasks.guard import VolumeGuard
from agent.volumes.rules.names import REPLICA, UNKNOWN_VOLUME, is_snapshot_id, is_volume_id
from agent.volumes.service.lineage import Lineage
from agent.volumes.service.snapshots import guard_key
from agent.volumes.target.observed import Observed
from agent.volumes.target.reconcile import Reconciler

log = logging.getLogger(__name__)


class Adoption:
    """`settle_soon` is called with the id of each volume found.

    An lvol without a record is no leftover of ours: records are written first and removed last. File disks do not
    travel: there it means that the database was lost, which a person has to look at.
    """

    def __init__(
        self,
        rpc: Rpc,
        store: Store,
        records: DiskRecords,
        ledger: Ledger,
        reconciler: Reconciler,
        lineage: Lineage,
        guard: VolumeGuard,
    ) -> None:
        self._rpc = rpc
        self._store = store
        self._records = records
        self._ledger = ledger
        self._reconciler = reconciler
        self._lineage = lineage
        self._guard = guard
        self.settle_soon: Callable[[str], None] = lambda volume: None

    async def look(self, observed: Observed) -> None:
        """Everything in the pools of disks was read: what has no record gets one, snapshots before what needs them."""
        disks = {
            disk.pool_name: disk
            for disk in await self._records.list()
            if kind(disk) != FILE and disk.status.phase is DiskPhase.READY
        }
        known = {each.meta.name for each in await self._store.list(Volume)}
        known |= {each.meta.name for each in await self._store.list(Snapshot)}
        found = {name: disks[pool] for name, pool in observed.places.items() if pool in disks and name not in known}
        for name in sorted(found, key=lambda name: (is_volume_id(name), name)):
            await self.adopt(name, found[name], observed.parents)

    async def adopt(self, name: str, disk: Disk, parents: Mapping[str, str]) -> None:
        """Make a record of the data of that name, unless there is one. `parents`: what each lvol stands on."""
        key = name if is_volume_id(name) else guard_key(name)
        try:
            async with self._guard.hold(key):
                device = await bdev.get(self._rpc, f"{disk.pool_name}/{name}")
                if device is None or device.lvol is None or await self._is_known(name):
                    return  # it was deleted since, or made
                if parent := parents.get(name):
                    self._lineage.put_on(name, parent)
                thin = Provisioning.THIN if device.lvol.thin_provision else Provisioning.THICK
                self._ledger.reserve(name, disk.meta.name, device.size_bytes, thin)
                if is_snapshot_id(name):
                    snapshot = _snapshot(name, disk, device, thin, _volume_on(name, parents))
                    self._lineage.add(await self._store.create(snapshot))
                else:
                    self._reconciler.mark_unknown(name)
                    await self._store.create(_volume(name, disk, device, thin))
        except Busy as error:
            log.info("%s is left to the next audit: %s", name, error)
            return
        log.info("%s came with disk %s", name, disk.meta.name)
        if is_volume_id(name):
            self.settle_soon(name)

    async def _is_known(self, name: str) -> bool:
        known: Volume | Snapshot | None
        known = await (self._store.get(Volume, name) if is_volume_id(name) else self._store.get(Snapshot, name))
        return known is not None


def _volume(name: str, disk: Disk, device: bdev.BdevInfo, thin: Provisioning) -> Volume:
    return Volume(
        Meta(name, created_at=time.time()),
        VolumeSpec(
            csi_name="",
            size_bytes=device.size_bytes,
            tier=disk.tier,
            provisioning=thin,
            placement=(Replica(REPLICA, disk.status.node, disk.meta.name),),
        ),
        VolumeStatus(VolumePhase.READY, device.size_bytes, (ReplicaStatus(REPLICA, lvol_uuid=device.uuid),)),
    )


def _snapshot(name: str, disk: Disk, device: bdev.BdevInfo, thin: Provisioning, volume: str) -> Snapshot:
    size, now = device.size_bytes, time.time()
    return Snapshot(
        Meta(name, created_at=now),
        SnapshotSpec("", volume, disk.status.node, disk.meta.name, size, thin),
        SnapshotStatus(SnapshotPhase.READY, size, now, ((REPLICA, device.uuid),)),
    )


def _volume_on(snapshot: str, parents: Mapping[str, str]) -> str:
    """A volume that stands on `snapshot`, directly or over others: probably the one it was taken of."""
    standing = {snapshot}
    while True:
        children = {lvol for lvol, parent in parents.items() if parent in standing} - standing
        volumes = sorted(filter(is_volume_id, children))
        if volumes or not children:
            return volumes[0] if volumes else UNKNOWN_VOLUME
        standing |= children
