"""The volumes of this machine as callers see them: create, publish, unpublish, expand, delete.

Every operation writes what is desired to the store first and then settles it, so that it can be repeated and can die
anywhere. Once begun, an operation runs to its end even if its caller goes away: nothing is left half known.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from agent.errors import (
    DiskAway,
    FailedPrecondition,
    NotFound,
    RpcError,
)
from agent.model import (
    AccessMode,
    Attachment,
    Disk,
    Provisioning,
    TargetState,
    Tier,
    Volume,
)
from agent.pools.ledger import Capacity, Ledger
from agent.pools.topology import EVERYWHERE, Segment
from agent.store.interface import Store
from agent.tasks.operations import Operations
from agent.volumes.rules import local, offers
from agent.volumes.rules.conditions import VolumeCondition, condition
from agent.volumes.rules.names import is_volume_id, volume_id
from agent.volumes.rules.requests import CreateVolume, QosChange
from agent.volumes.rules.settling import Settler
from agent.volumes.service import attachments
from agent.volumes.service.attachments import Attachments
from agent.volumes.service.creation import Creation
from agent.volumes.service.expansion import Expansion
from agent.volumes.service.host_names import corrected
from agent.volumes.service.records import existing, find, marked_deleting, settled
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
        self._creation = Creation(store, ledger, settler, sources)
        self._expansion = Expansion(store, ledger, settler)
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
        volume = await find(self._store, volume_id)
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
        return await self._run(name, lambda: self._creation.create(name, request))

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
        return await self._run(volume_id, lambda: self._expansion.expand(volume_id, required_bytes, limit_bytes))

    async def modify(self, volume_id: str, change: QosChange) -> Volume:
        """Set the limits that `change` names, at once for hosts that have the volume. Raises NotFound."""
        return await self._run(volume_id, lambda: self._modify(volume_id, change))

    # --- inside ----------------------------------------------------------------------------------------------

    async def _delete(self, name: str) -> None:
        volume = await find(self._store, name)
        if volume is None:
            return
        if volume.spec.attachments:
            nodes = ", ".join(each.node for each in volume.spec.attachments)
            raise FailedPrecondition(f"volume {name} is published to {nodes}; unpublish it first")
        await self._settler.settle(await marked_deleting(self._store, volume))

    async def _publish(self, name: str, node: str, access_mode: AccessMode, readonly: bool) -> Volume:
        volume = await existing(self._store, name)
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
            return await settled(self._settler, volume)
        except (FailedPrecondition, RpcError):
            # A final answer means that nothing is left behind: the door stays shut. One that was open before is not
            # this call's to shut: the node may have the volume mounted.
            if not present:
                await self._unpublish(name, node)
            raise

    async def _unpublish(self, name: str, node: str | None) -> None:
        volume = await find(self._store, name)
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

    async def _modify(self, name: str, change: QosChange) -> Volume:
        volume = await existing(self._store, name)
        before, qos = volume.spec.qos, change.applied_to(volume.spec.qos)
        if qos == before:
            return await settled(self._settler, volume)
        volume = await self._store.update(replace(volume, spec=replace(volume.spec, qos=qos)))
        try:
            return await settled(self._settler, volume)
        except (FailedPrecondition, RpcError):
            # A final answer means that nothing changed: take the wish back.
            current = await existing(self._store, name)
            await self._store.update(replace(current, spec=replace(current.spec, qos=before)))
            raise
