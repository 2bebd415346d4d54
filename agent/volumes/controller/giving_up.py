"""Volumes and snapshots whose node is gone for good: a person has said so by deleting its StorageNode and its Disks.

What is given up is placed nowhere from then on, so that no node serves it, whichever comes back: it has failed, and
can be unpublished and deleted with nobody to wait for. Data that turn up again are a matter of `quarry volumes adopt`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from agent.errors import Busy, Conflict, NotFound
from agent.model import Disk, Snapshot, SnapshotPhase, StorageNode, Volume, VolumePhase
from agent.store.interface import Store
from agent.tasks.operations import Operations
from agent.volumes.service.snapshots import guard_key

log = logging.getLogger(__name__)

REMEDY = "restore it from a backup, or delete it"


class GivingUp:
    """`is_dead`: whether a node has given no sign of life for long enough."""

    def __init__(self, store: Store, operations: Operations, is_dead: Callable[[str], bool]) -> None:
        self._store = store
        self._operations = operations
        self._is_dead = is_dead

    async def look(self) -> None:
        """Give up what lies on nodes and disks that nobody has a record of any more. To be called again and again."""
        nodes = {each.meta.name for each in await self._store.list(StorageNode)}
        disks = {each.meta.name for each in await self._store.list(Disk)}

        def is_forgotten(node: str, disk: str) -> bool:
            return node not in nodes and disk not in disks and self._is_dead(node)

        for volume in await self._store.list(Volume):
            if any(is_forgotten(each.node, each.disk) for each in volume.spec.placement) or _is_half_done(volume):
                await self._held(volume.meta.name, partial(self._give_up_volume, volume.meta.name))
        for snapshot in await self._store.list(Snapshot):
            name = snapshot.meta.name
            if snapshot.spec.node and is_forgotten(snapshot.spec.node, snapshot.spec.disk):
                await self._held(guard_key(name), partial(self._give_up_snapshot, name))

    async def _held(self, key: str, work: Callable[[], Awaitable[None]]) -> None:
        try:
            async with self._operations.guard.hold(key):
                await work()
        except (Busy, Conflict, NotFound) as error:
            log.info("%s is given up with the next look: %s", key, error)

    async def _give_up_volume(self, name: str) -> None:
        volume = await self._store.get(Volume, name)
        if volume is None:
            return
        if volume.spec.placement:
            place = volume.spec.placement[0]
            why = f"its data are lost: they lay on disk {place.disk} of node {place.node}, which was forgotten"
            log.error("volume %s is given up: %s", name, why)
            if volume.status.phase is VolumePhase.PENDING and not volume.spec.attachments:
                # It was never made: nothing is lost, and CreateVolume makes it elsewhere when it is repeated.
                meta = replace(volume.meta, deleting=True)
                await self._store.update(replace(volume, meta=meta, spec=replace(volume.spec, placement=())))
                return
            # The reason first: without a placement nobody could tell it any more.
            status = replace(volume.status, phase=VolumePhase.FAILED, message=why, replicas=(), failure=None)
            volume = await self._store.update(replace(volume, status=status))
            volume = await self._store.update(replace(volume, spec=replace(volume.spec, placement=())))
        await self._store.update(replace(volume, status=replace(volume.status, observed=volume.meta.generation)))

    async def _give_up_snapshot(self, name: str) -> None:
        snapshot = await self._store.get(Snapshot, name)
        if snapshot is None or not snapshot.spec.node:
            return
        where = f"disk {snapshot.spec.disk} of node {snapshot.spec.node}"
        why = f"its data are lost: they lay on {where}, which was forgotten"
        log.error("snapshot %s is given up: %s", name, why)
        status = replace(snapshot.status, phase=SnapshotPhase.FAILED, message=why, lvols=(), failure=None)
        snapshot = await self._store.update(replace(snapshot, status=status))
        await self._store.update(replace(snapshot, spec=replace(snapshot.spec, node="")))


def is_given_up(resource: Volume | Snapshot) -> bool:
    """Whether it is placed nowhere: there is no node to wait for."""
    return not (resource.spec.node if isinstance(resource, Snapshot) else resource.spec.placement)


def _is_half_done(volume: Volume) -> bool:
    return is_given_up(volume) and volume.status.observed != volume.meta.generation and not volume.meta.deleting
