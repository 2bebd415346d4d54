"""What the controller knows of all nodes: pools to place volumes on, what weighs on them, who waits for what.

Kept up to date by watches, from the start of a term as leader to its end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from agent.model import Condition, ConditionStatus, Disk, DiskPhase, Snapshot, StorageNode, TargetState, Volume
from agent.pools.disk_conditions import being_zeroed, takes_new_volumes, why_not, with_condition
from agent.pools.ledger import Ledger, Pool
from agent.store.following import Changes
from agent.store.interface import Store
from agent.tasks.operations import Operations
from agent.tasks.work import Work
from agent.volumes.controller.giving_up import is_given_up
from agent.volumes.rules.deletion import HELD, is_data_gone
from agent.volumes.rules.settling import SnapshotSettler
from agent.volumes.service.host_names import HostNames
from agent.volumes.service.internal_snapshots import hide_when_cloned
from agent.volumes.service.lineage import Lineage
from agent.volumes.service.snapshots import guard_key

log = logging.getLogger(__name__)


class Fleet:
    """`is_alive` tells whether a node gives signs of life."""

    def __init__(
        self, store: Store, ledger: Ledger, lineage: Lineage, operations: Operations, is_alive: Callable[[str], bool]
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._lineage = lineage
        self._operations = operations
        self._is_alive = is_alive
        self._disk_work = Work("disk", self._count_disk)
        self._node_work = Work("node", self._count_node)
        self._volume_work = Work("volume", self._count_volume)
        self._snapshot_work = Work("snapshot", self._count_snapshot)
        self._hiding = Work("internal snapshot", self._hide_when_cloned)
        self._moves = Work("contents of disk", self._bring_along, parallel=4)
        self._host_names = HostNames(store, operations)
        self.volumes = Changes(store, Volume, self._volume_work.stir)
        self.snapshots = Changes(store, Snapshot, self._snapshot_work.stir)
        self._disks = Changes(store, Disk, self._disk_work.stir)
        self._nodes = Changes(store, StorageNode, self._node_work.stir)
        self._pools: dict[str, tuple[Pool, int]] = {}
        """What was counted of each disk, and the point in the order of reservations when that was recorded."""
        self._homes: dict[str, str] = {}
        """The node that has each disk, as told last while it was ready."""
        self._unrecorded: dict[str, set[str]] = {}
        """By disk, names of data on it that have no record."""
        self._targets: dict[str, TargetState] = {}
        self.settler: SnapshotSettler | None = None

    async def start(self) -> None:
        """Count what is stored, then follow it."""
        snapshots, volumes = await self._store.list(Snapshot), await self._store.list(Volume)
        self._lineage.load(snapshots, volumes)
        for volume in volumes:
            self._weigh_volume(volume)
        for snapshot in snapshots:
            self._weigh_snapshot(snapshot)
        for disk in await self._store.list(Disk):
            await self._count_disk(disk.meta.name)
        self._moves.stir(*self._carried(volumes, snapshots))
        self._lineage.look_after = self._hiding.stir
        for each in (self.volumes, self.snapshots, self._disks, self._nodes):
            each.start()
        self._lineage.stir()

    async def stop(self) -> None:
        for each in (self.volumes, self.snapshots, self._disks, self._nodes):
            await each.stop()
        for work in (
            self._disk_work,
            self._node_work,
            self._volume_work,
            self._snapshot_work,
            self._hiding,
            self._moves,
            self._host_names,
        ):
            await work.stop()

    def nodes_changed(self) -> None:
        """Some give signs of life again, or no more."""
        self._disk_work.stir(*self._pools)

    def excuse(self, node: str) -> str:
        """Why a node may be silent; empty: no reason is known."""
        if self._is_alive(node):
            return ""
        return (
            f"the agent of node {node} gives no sign of life. Start the node, or if it is gone for good: "
            f"quarry nodes forget {node}"
        )

    def has_unrecorded(self, volume: str) -> bool:
        """Whether a disk has data of that name that have no record."""
        return any(volume in names for names in self._unrecorded.values())

    def target_of(self, volume: Volume) -> TargetState:
        """State of the target that has the volume's data, as its node told last."""
        node = volume.spec.placement[0].node if volume.spec.placement else ""
        return self._targets.get(node, TargetState.UNKNOWN) if self._is_alive(node) else TargetState.UNREACHABLE

    # --- counting ---

    async def _count_node(self, name: str) -> None:
        node = await self._store.get(StorageNode, name)
        if node is not None:
            self._targets[name] = node.status.target_state
            await self._host_names.node_seen(node)
        for disk in await self._store.list(Disk):
            if disk.status.node == name:
                await self._count_disk(disk.meta.name)

    async def _count_disk(self, name: str) -> None:
        disk = await self._store.get(Disk, name)
        self._unrecorded[name] = {each.name for each in disk.status.unrecorded} if disk else set()
        if disk is None or disk.status.phase is not DiskPhase.READY or not disk.status.pool.size_bytes:
            self._pools.pop(name, None)
            self._ledger.remove_pool(name)
            return
        node = await self._store.get(StorageNode, disk.status.node)
        usable = node is not None and not node.spec.cordoned and node.status.target_state is TargetState.READY
        pool = Pool(
            disk=name,
            node=disk.status.node,
            tier=disk.tier,
            size_bytes=disk.status.pool.size_bytes,
            free_bytes=disk.status.pool.free_bytes,
            cluster_bytes=disk.status.pool.cluster_bytes,
            zone=node.status.zone if node else "",
            accepting=takes_new_volumes(disk) and usable and self._is_alive(disk.status.node),
            why_not=why_not(disk),
            zeroing=being_zeroed(disk),
        )
        before, as_of = self._pools.get(name, (None, self._ledger.now))
        if before == pool:
            return
        if self._homes.setdefault(name, pool.node) != pool.node:
            self._homes[name] = pool.node
            self._moves.stir(name)
        # Free space is that of some moment since the last record: what was promised since then may not be in it.
        is_new = before is None or before.free_bytes != pool.free_bytes
        self._pools[name] = (replace(pool, promised_bytes=0.0), self._ledger.now if is_new else as_of)
        self._ledger.set_pool(pool, as_of)

    async def _count_volume(self, name: str) -> None:
        volume = await self._store.get(Volume, name)
        if volume is None:
            if not self._operations.guard.is_held(name):
                self._ledger.release(name)
            return
        if is_data_gone(volume) or (volume.meta.deleting and is_given_up(volume) and not volume.spec.attachments):
            await self._store.delete(Volume, name, volume.meta.version)
            await self._tell_who_holds(name)
            return
        self._weigh_volume(volume)
        self._host_names.volume_seen(volume)
        self._moves.stir(*self._carried([volume], []))

    async def _tell_who_holds(self, name: str) -> None:
        """On a volume that stays though its data are gone, because others have finalizers on it."""
        left = await self._store.get(Volume, name)
        if left is None or not left.meta.held_by:
            return
        message = f"its data are gone; it stays until others take their finalizers off: {', '.join(left.meta.held_by)}"
        held = Condition(HELD, ConditionStatus.TRUE, "Finalizers", message, time.time())
        conditions = with_condition(left.status.conditions, held)
        if conditions != left.status.conditions:
            await self._store.update(replace(left, status=replace(left.status, conditions=conditions)))

    def _weigh_volume(self, volume: Volume) -> None:
        if volume.spec.placement and not self._operations.guard.is_held(volume.meta.name):
            spec = volume.spec
            self._ledger.reserve(volume.meta.name, spec.placement[0].disk, spec.size_bytes, spec.provisioning)

    async def _count_snapshot(self, name: str) -> None:
        snapshot = await self._store.get(Snapshot, name)
        if snapshot is None:
            return
        if is_data_gone(snapshot) or (snapshot.meta.deleting and is_given_up(snapshot)):
            await self._store.delete(Snapshot, name, snapshot.meta.version)
            self._ledger.release(name)
            self._lineage.forget(snapshot)
            return
        self._lineage.add(snapshot)
        self._weigh_snapshot(snapshot)
        self._moves.stir(*self._carried([], [snapshot]))

    def _weigh_snapshot(self, snapshot: Snapshot) -> None:
        spec = snapshot.spec
        self._ledger.reserve(snapshot.meta.name, spec.disk, spec.size_bytes, spec.provisioning)

    # --- disks that were carried to another node ---

    def _carried(self, volumes: Iterable[Volume], snapshots: Iterable[Snapshot]) -> set[str]:
        """The disks of these that another node has than the one they are recorded on."""
        places = {(place.disk, place.node) for volume in volumes for place in volume.spec.placement[:1]}
        places |= {(each.spec.disk, each.spec.node) for each in snapshots if not is_given_up(each)}
        return {disk for disk, node in places if self._homes.get(disk, node) != node}

    async def _bring_along(self, name: str) -> None:
        """Record volumes and snapshots of a disk on the node that has it now, which then settles them."""
        disk = await self._store.get(Disk, name)
        if disk is None or disk.status.phase is not DiskPhase.READY:
            return
        snapshots = [each.meta.name for each in await self._store.list(Snapshot) if _is_left(each, disk)]
        volumes = [each.meta.name for each in await self._store.list(Volume) if _is_left(each, disk)]
        if snapshots or volumes:
            log.info("disk %s is on node %s now, with %d volumes", name, disk.status.node, len(volumes))
        moves = [self._operations.run(guard_key(each), partial(self._move_snapshot, each, disk)) for each in snapshots]
        moves += [self._operations.run(each, partial(self._move_volume, each, disk)) for each in volumes]
        results = await asyncio.gather(*moves, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _move_volume(self, name: str, disk: Disk) -> None:
        volume = await self._store.get(Volume, name)
        if volume is not None and _is_left(volume, disk):
            first, *others = volume.spec.placement
            placement = (replace(first, node=disk.status.node), *others)
            await self._store.update(replace(volume, spec=replace(volume.spec, placement=placement)))

    async def _move_snapshot(self, name: str, disk: Disk) -> None:
        snapshot = await self._store.get(Snapshot, name)
        if snapshot is not None and _is_left(snapshot, disk):
            await self._store.update(replace(snapshot, spec=replace(snapshot.spec, node=disk.status.node)))

    # --- internal snapshots ---

    async def _hide_when_cloned(self, name: str) -> None:
        await self._operations.run(guard_key(name), lambda: self._hide(name))

    async def _hide(self, name: str) -> None:
        snapshot = await self._store.get(Snapshot, name)
        if snapshot is not None and snapshot.spec.owner and not snapshot.meta.deleting and self.settler is not None:
            await hide_when_cloned(self._store, self._operations, self.settler, snapshot)


def _is_left(resource: Volume | Snapshot, disk: Disk) -> bool:
    """Whether it lies on `disk` and is recorded on another node."""
    if is_given_up(resource):
        return False
    if isinstance(resource, Snapshot):
        return resource.spec.disk == disk.meta.name and resource.spec.node != disk.status.node
    places = resource.spec.placement[:1]
    return any(each.disk == disk.meta.name and each.node != disk.status.node for each in places)
