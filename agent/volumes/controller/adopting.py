"""The controller's part in adopting data without a record: it makes the record, which the node of the disk settles."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from agent.errors import AlreadyExists, Busy, Conflict, NotFound
from agent.model import (
    Disk,
    Meta,
    Replica,
    ReplicaStatus,
    Snapshot,
    SnapshotPhase,
    SnapshotSpec,
    SnapshotStatus,
    UnrecordedData,
    Volume,
    VolumePhase,
    VolumeSpec,
    VolumeStatus,
)
from agent.store.interface import Store
from agent.tasks.operations import Operations
from agent.volumes.controller.giving_up import is_given_up
from agent.volumes.rules.names import REPLICA, UNKNOWN_VOLUME, is_volume_id
from agent.volumes.service.snapshots import guard_key

log = logging.getLogger(__name__)


class Adopting:
    """`look` is called again and again: a wish goes from the Disk when its node has seen the record."""

    def __init__(self, store: Store, operations: Operations) -> None:
        self._store = store
        self._operations = operations

    async def look(self) -> None:
        for disk in await self._store.list(Disk):
            # Snapshots before what stands on them.
            wanted = [each for each in disk.status.unrecorded if each.name in disk.spec.adopt]
            for data in sorted(wanted, key=lambda each: (is_volume_id(each.name), each.name)):
                await self._adopt(disk, data, disk.status.unrecorded)

    async def _adopt(self, disk: Disk, data: UnrecordedData, all_data: tuple[UnrecordedData, ...]) -> None:
        key = data.name if is_volume_id(data.name) else guard_key(data.name)
        try:
            async with self._operations.guard.hold(key):
                if is_volume_id(data.name):
                    await self._adopt_volume(disk, data)
                else:
                    await self._adopt_snapshot(disk, data, all_data)
        except (AlreadyExists, Busy, Conflict, NotFound) as error:
            log.info("%s on disk %s is adopted with the next look: %s", data.name, disk.meta.name, error)

    async def _adopt_volume(self, disk: Disk, data: UnrecordedData) -> None:
        known = await self._store.get(Volume, data.name)
        place = (Replica(REPLICA, disk.status.node, disk.meta.name),)
        status = VolumeStatus(VolumePhase.READY, data.size_bytes, (ReplicaStatus(REPLICA, lvol_uuid=data.lvol_uuid),))
        if known is None:
            spec = VolumeSpec(
                csi_name="", size_bytes=data.size_bytes, tier=disk.tier, provisioning=data.provisioning, placement=place
            )
            await self._store.create(Volume(Meta(data.name, created_at=time.time()), spec, status))
        elif is_given_up(known) and not known.meta.deleting:
            # What it is comes first: without a placement nobody settles it meanwhile.
            known = await self._store.update(replace(known, status=status))
            await self._store.update(replace(known, spec=replace(known.spec, placement=place)))
        else:
            return
        log.warning("volume %s is adopted from disk %s", data.name, disk.meta.name)

    async def _adopt_snapshot(self, disk: Disk, data: UnrecordedData, all_data: tuple[UnrecordedData, ...]) -> None:
        known, now = await self._store.get(Snapshot, data.name), time.time()
        status = SnapshotStatus(SnapshotPhase.READY, data.size_bytes, now, ((REPLICA, data.lvol_uuid),))
        if known is None:
            volume = next((each.name for each in all_data if each.parent == data.name and is_volume_id(each.name)), "")
            spec = SnapshotSpec(
                "", volume or UNKNOWN_VOLUME, disk.status.node, disk.meta.name, data.size_bytes, data.provisioning
            )
            await self._store.create(Snapshot(Meta(data.name, created_at=now), spec, status))
        elif is_given_up(known) and not known.meta.deleting:
            status = replace(status, created_at=known.status.created_at)
            known = await self._store.update(replace(known, status=status))
            await self._store.update(replace(known, spec=replace(known.spec, node=disk.status.node)))
        else:
            return
        log.warning("snapshot %s is adopted from disk %s", data.name, disk.meta.name)
