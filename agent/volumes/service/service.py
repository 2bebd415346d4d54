"""The volumes of this machine as callers see them: create, publish, unpublish, expand, delete.

Every operation writes what is desired to the store first and then settles it, so that it can be repeated and can die
anywhere. Once begun, an operation runs to its end even if its caller goes away: nothing is left half known.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from agent.errors import (
    AlreadyExists,
    Busy,
    DiskAway,
    FailedPrecondition,
    NotFound,
    OutOfRange,
    QuarryError,
    ResourceExhausted,
    RpcError,
)
from agent.model import (
    AccessMode,
    Attachment,
    Disk,
    Meta,
    Provisioning,
    Replica,
    StorageNode,
    TargetState,
    Tier,
    Volume,
    VolumePhase,
    VolumeSpec,
)
from agent.pools.ledger import Capacity, Ledger, Pool
from agent.pools.topology import EVERYWHERE, Segment, bound_to
from agent.store.interface import Store
from agent.tasks.operations import Operations
from agent.volumes.rules import local, offers
from agent.volumes.rules.conditions import VolumeCondition, condition
from agent.volumes.rules.names import REPLICA, is_volume_id, volume_id
from agent.volumes.rules.placement import choose
from agent.volumes.rules.requests import CreateVolume, QosChange
from agent.volumes.rules.settling import Settler
from agent.volumes.service import attachments
from agent.volumes.service.attachments import Attachments
from agent.volumes.service.host_names import corrected
from agent.volumes.service.sources import Sources


class VolumeService:
    """Volume operations; raises only what agent.errors defines. One operation per volume at a time."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        settler: Settler,
        operations: Operations,
        target_state: Callable[[], TargetState],
        local_file: Callable[[str], Awaitable[Path | None]],
        sources: Sources,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._settler = settler
        self._run = operations.run
        self._target_state = target_state
        self._local_file = local_file
        self._sources = sources
        self._attachments = Attachments()
        self.target_of: Callable[[Volume], TargetState] = lambda volume: target_state()
        """State of the target that has the volume's data."""

    async def start(self) -> None:
        """Count the attachments there are, before the first call."""
        self._attachments.count(await self._store.list(Volume))

    # --- queries ---------------------------------------------------------------------------------------------

    def health(self) -> TargetState:
        """State of this node's target."""
        return self._target_state()

    async def get(self, volume_id: str) -> Volume:
        """The volume, also one that is being deleted. Raises NotFound."""
        volume = await self._find(volume_id)
        if volume is None:
            raise NotFound("volume", volume_id)
        return volume

    async def list(self) -> list[Volume]:
        """All volumes by id."""
        return sorted(await self._store.list(Volume), key=lambda volume: volume.meta.name)

    async def capacity(
        self, tier: Tier, provisioning: Provisioning = Provisioning.THIN, segment: Segment = EVERYWHERE
    ) -> Capacity:
        """What could be created now of that tier in `segment`. Raises Unavailable while the disks are not known."""
        await self._settler.ready()
        return self._ledger.capacity(tier, provisioning, segment)

    async def conditions(self, volumes: Sequence[Volume]) -> Sequence[VolumeCondition]:
        """How each of `volumes` is."""
        disks = {disk.meta.name: disk for disk in await self._store.list(Disk)}
        return [
            condition(
                each,
                self.target_of(each),
                self._ledger,
                disks.get(each.spec.placement[0].disk if each.spec.placement else ""),
                shares=self._sources.shares(each.meta.name),
            )
            for each in volumes
        ]

    async def local_path(self, volume_id: str) -> Path | None:
        """The file behind the volume on the embedded target, None on a real one."""
        volume = await self.get(volume_id)
        name = self._settler.bdev_of(volume)
        return await self._local_file(name) if name else None

    # --- operations ------------------------------------------------------------------------------------------

    async def create(self, request: CreateVolume) -> Volume:
        """Create a volume, or return the one that an earlier call with the same name and parameters created.

        Raises AlreadyExists when the name belongs to a different volume, ResourceExhausted when there is no room
        now, OutOfRange when there never can be.
        """
        name = volume_id(request.name)
        return await self._run(name, lambda: self._create(name, request))

    async def delete(self, volume_id: str) -> None:
        """Delete a volume; absent is fine. Raises FailedPrecondition while it is published."""
        if is_volume_id(volume_id):
            await self._run(volume_id, lambda: self._delete(volume_id))

    async def publish(self, volume_id: str, node: str, *, access_mode: AccessMode, readonly: bool) -> Volume:
        """Open the volume to one node.

        Raises NotFound for an unknown volume or node, FailedPrecondition while another node has it (unless the
        access mode shares), AlreadyExists when it is published to the node in another way.
        """
        attachment = (node, access_mode, readonly)
        return await self._run(volume_id, lambda: self._publish(volume_id, *attachment))

    async def unpublish(self, volume_id: str, node: str | None) -> None:
        """Close the volume to `node` (None: to all); connections are cut. Absent is fine."""
        if is_volume_id(volume_id):
            await self._run(volume_id, lambda: self._unpublish(volume_id, node))

    async def expand(self, volume_id: str, required_bytes: int, limit_bytes: int = 0) -> Volume:
        """Grow a volume to at least `required_bytes`, online. Never shrinks."""
        return await self._run(volume_id, lambda: self._expand(volume_id, required_bytes, limit_bytes))

    async def modify(self, volume_id: str, change: QosChange) -> Volume:
        """Set the limits that `change` names, at once for hosts that have the volume. Raises NotFound."""
        return await self._run(volume_id, lambda: self._modify(volume_id, change))

    # --- inside ----------------------------------------------------------------------------------------------

    async def _find(self, volume: str) -> Volume | None:
        return await self._store.get(Volume, volume) if is_volume_id(volume) else None

    async def _existing(self, volume_id: str) -> Volume:
        volume = await self.get(volume_id)
        if volume.meta.deleting:
            raise NotFound("volume", volume_id)
        return volume

    async def _settle(self, volume: Volume) -> Volume:
        settled = await self._settler.settle(volume)
        if settled is None:
            raise NotFound("volume", volume.meta.name)
        if settled.status.phase is VolumePhase.FAILED:
            raise FailedPrecondition(f"volume {volume.meta.name} has failed: {settled.status.message}")
        return settled

    async def _create(self, name: str, request: CreateVolume) -> Volume:
        existing = await self._store.get(Volume, name)
        if existing is not None and existing.meta.deleting:
            await self._settler.settle(existing)
            existing = None
        if existing is not None:
            if not existing.spec.csi_name:
                request.require_same(request.completed(existing))
                existing = await self._store.update(request.completed(existing))
            request.require_same(existing)
            await self._require_reachable(existing, request)
            if existing.status.replicas or existing.status.phase is VolumePhase.FAILED:
                return await self._settle(existing)
        else:
            await self._settler.ready()  # no disk known yet is not the same as no disk
            self._refuse_unrecorded(name)
            request = replace(request, unfit=offers.unfit(await self._store.list(StorageNode), request.frontend))
            if request.source is not None:
                async with self._sources.opened(name, request) as complete:
                    return await self._make(name, complete, None)
        return await self._make(name, request, existing)

    async def _make(self, name: str, request: CreateVolume, existing: Volume | None) -> Volume:
        refused: set[str] = set()
        # One that was recorded and never made holds nothing, and has its disk no more for sure than a new one.
        begun = existing
        while True:
            volume, begun = begun or await self._record(name, request, frozenset(refused)), None
            try:
                return await self._settle(volume)
            except (ResourceExhausted, FailedPrecondition, RpcError) as error:
                # A final answer means that nothing is left behind. A pool that is full may have a neighbour.
                refused.add(volume.spec.placement[0].disk)
                await self._abandon(volume)
                if not isinstance(error, ResourceExhausted) or request.source is not None:
                    raise
                if not self._roomy(request, frozenset(refused)):
                    raise

    async def _require_reachable(self, volume: Volume, request: CreateVolume) -> None:
        """Raise AlreadyExists when the volume cannot be used where `request` needs it."""
        for name in bound_to(volume) if request.topology.requisite else ():
            node = await self._store.get(StorageNode, name)
            if request.topology.allows(name, node.status.zone if node else ""):
                return
            raise AlreadyExists("volume", request.name, f"on node {name}, which is not in {request.topology}")

    def _refuse_unrecorded(self, name: str) -> None:
        """Records are written first and removed last: an lvol without one is from before the database was lost."""
        if self._settler.holds_unrecorded(name):
            raise FailedPrecondition(
                f"a disk holds data named {name} of which there is no record: they are left alone. Bring them back "
                f"(quarry volumes adopt {name}) or destroy them (quarry volumes discard {name}), then repeat the call"
            )

    async def _record(self, name: str, request: CreateVolume, avoid: frozenset[str]) -> Volume:
        """Choose a disk, count the volume on it and write it down."""
        pool, size_bytes = self._choose(request, avoid)
        self._ledger.reserve(name, pool.disk, size_bytes, request.provisioning)
        volume = Volume(
            meta=Meta(name, created_at=time.time()),
            spec=VolumeSpec(
                csi_name=request.name,
                size_bytes=size_bytes,
                tier=request.tier,
                provisioning=request.provisioning,
                replica_count=request.replica_count,
                placement=(Replica(REPLICA, pool.node, pool.disk),),
                frontend=request.frontend,
                qos=request.qos,
                connect=request.connect,
                parameters=request.parameters,
                source=request.source,
                requested_bytes=request.required_bytes,
            ),
        )
        try:
            return await self._store.create(volume)
        except AlreadyExists as error:
            self._ledger.release(name)
            raise Busy(f"volume {name} was recorded by another controller just now; repeat the call") from error
        except BaseException:
            self._ledger.release(name)
            raise

    def _choose(self, request: CreateVolume, avoid: frozenset[str]) -> tuple[Pool, int]:
        return choose(self._ledger, request.placement(avoid))

    def _roomy(self, request: CreateVolume, avoid: frozenset[str]) -> bool:
        try:
            self._choose(request, avoid)
        except ResourceExhausted:
            return False
        return True

    async def _abandon(self, volume: Volume) -> None:
        current = await self._store.get(Volume, volume.meta.name)
        if current is not None:
            await self._settler.settle(await self._mark_deleting(current))

    async def _mark_deleting(self, volume: Volume) -> Volume:
        if volume.meta.deleting:
            return volume
        return await self._store.update(replace(volume, meta=replace(volume.meta, deleting=True)))

    async def _delete(self, name: str) -> None:
        volume = await self._find(name)
        if volume is None:
            return
        if volume.spec.attachments:
            nodes = ", ".join(each.node for each in volume.spec.attachments)
            raise FailedPrecondition(f"volume {name} is published to {nodes}; unpublish it first")
        await self._settler.settle(await self._mark_deleting(volume))

    async def _publish(self, name: str, node: str, access_mode: AccessMode, readonly: bool) -> Volume:
        volume = await self._existing(name)
        target = await attachments.node_called(self._store, node)
        node = target.meta.name
        wanted = Attachment(node, attachments.require_host(target), access_mode, readonly)
        if (right := corrected(volume, {node: wanted.host_nqn})) is not volume:
            volume = await self._store.update(right)
        present = attachments.present(volume, wanted)
        local.require_reachable(volume, node)
        if not present:
            attachments.require_shareable(volume, wanted)
            offers.require_offered(target, volume)
            self._attachments.admit(target, name)
            spec = replace(volume.spec, attachments=(*volume.spec.attachments, wanted))
            try:
                volume = await self._store.update(replace(volume, spec=spec))
            except BaseException:
                self._attachments.leave(node, name)
                raise
        try:
            return await self._settle(volume)
        except (FailedPrecondition, RpcError):
            # A final answer means that nothing is left behind: the door stays shut. One that was open before is not
            # this call's to shut: the node may have the volume mounted.
            if not present:
                await self._unpublish(name, node)
            raise

    async def _unpublish(self, name: str, node: str | None) -> None:
        volume = await self._find(name)
        if volume is None:
            return
        kept = attachments.without(volume, node)
        if kept != volume.spec.attachments:
            before = volume.spec.attachments
            volume = await self._store.update(replace(volume, spec=replace(volume.spec, attachments=kept)))
            for each in before:
                if each not in kept:
                    self._attachments.leave(each.node, name)
        with suppress(DiskAway):  # the node is out, and stays out when the disk is back
            await self._settler.settle(volume)

    async def _expand(self, name: str, required_bytes: int, limit_bytes: int) -> Volume:
        volume = await self._existing(name)
        if volume.status.phase is VolumePhase.FAILED:
            volume = await self._settle(volume)  # refused before more room is promised to a volume without its data
        await self._settler.ready()
        disk = volume.spec.placement[0].disk
        pool = self._ledger.pool(disk)
        if pool is None:
            raise FailedPrecondition(f"disk {disk} of volume {name} is not ready; the agent's log has the reason")
        size_bytes = pool.round_up(required_bytes)
        if limit_bytes and size_bytes > limit_bytes and volume.spec.size_bytes < required_bytes:
            raise OutOfRange(
                f"limit_bytes: {limit_bytes} leaves no room to round {required_bytes} up to whole clusters of "
                f"{pool.cluster_bytes} bytes; raise the limit"
            )
        if size_bytes <= volume.spec.size_bytes:
            return await self._settle(volume)
        local.require_growable(volume)
        if size_bytes > (most := self._ledger.ceiling(pool, volume.spec.provisioning)):
            raise OutOfRange(f"required_bytes: {size_bytes} is more than disk {disk} can ever hold ({most})")
        self._ledger.require_space(disk)
        if not self._ledger.can_grow(name, size_bytes):
            raise ResourceExhausted(f"disk {disk} has no room now to grow volume {name} to {size_bytes} bytes")
        return await self._grow(volume, disk, size_bytes, required_bytes)

    async def _grow(self, volume: Volume, disk: str, size_bytes: int, requested_bytes: int) -> Volume:
        before, spec = volume.spec, replace(volume.spec, size_bytes=size_bytes, requested_bytes=requested_bytes)
        self._ledger.reserve(volume.meta.name, disk, size_bytes, volume.spec.provisioning)
        try:
            wanted = await self._store.update(replace(volume, spec=spec))
        except QuarryError:
            self._ledger.reserve(volume.meta.name, disk, before.size_bytes, before.provisioning)
            raise
        try:
            return await self._settle(wanted)
        except ResourceExhausted:
            # Nothing grew: take the wish back, or the loop would try for ever.
            as_before = replace(wanted.spec, size_bytes=before.size_bytes, requested_bytes=before.requested_bytes)
            await self._store.update(replace(wanted, spec=as_before))
            self._ledger.reserve(volume.meta.name, disk, before.size_bytes, before.provisioning)
            raise

    async def _modify(self, name: str, change: QosChange) -> Volume:
        volume = await self._existing(name)
        before, qos = volume.spec.qos, change.applied_to(volume.spec.qos)
        if qos == before:
            return await self._settle(volume)
        volume = await self._store.update(replace(volume, spec=replace(volume.spec, qos=qos)))
        try:
            return await self._settle(volume)
        except (FailedPrecondition, RpcError):
            # A final answer means that nothing changed: take the wish back.
            current = await self._existing(name)
            await self._store.update(replace(current, spec=replace(current.spec, qos=before)))
            raise
