"""Stateful in-memory snapshots behind the CSI services: same contract as the real ones, no target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agent import errors
from agent.model import (
    Meta,
    Snapshot,
    SnapshotGroup,
    SnapshotGroupSpec,
    SnapshotGroupStatus,
    SnapshotPhase,
    SnapshotSpec,
    SnapshotStatus,
)
from agent.volumes.rules.members import Members
from agent.volumes.rules.names import group_id, snapshot_id

from .fakes import MemoryVolumes


class MemorySnapshots:
    """Snapshots of `volumes`; each is a second younger than the one before."""

    def __init__(self, volumes: MemoryVolumes) -> None:
        self._volumes = volumes
        self._snapshots: dict[str, Snapshot] = {}
        self._now = 1_700_000_000.25

    async def create(self, name: str, volume_id: str) -> Snapshot:
        found = self._snapshots.get(snapshot_id(name))
        if found is not None and found.spec.volume != volume_id:
            raise errors.AlreadyExists("snapshot", name, "of another volume")
        if found is None:
            volume = await self._volumes.get(volume_id)
            self._now += 1
            status = SnapshotStatus(SnapshotPhase.READY, volume.status.size_bytes, self._now)
            found = Snapshot(Meta(snapshot_id(name), 1), SnapshotSpec(name, volume_id), status)
            self._snapshots[found.meta.name] = found
        return found

    async def delete(self, snapshot: str) -> None:
        self._snapshots.pop(snapshot, None)

    async def get(self, name: str) -> Snapshot:
        if name not in self._snapshots:
            raise errors.NotFound("snapshot", name)
        return self._snapshots[name]

    async def list(self, volume: str) -> list[Snapshot]:
        found = [each for each in self._snapshots.values() if volume in ("", each.spec.volume)]
        return sorted(found, key=lambda each: each.meta.name)


class MemoryGroups:
    """Groups of `snapshots`."""

    def __init__(self, snapshots: MemorySnapshots) -> None:
        self._snapshots = snapshots
        self._groups: dict[str, Members] = {}

    async def create(self, name: str, volumes: Sequence[str]) -> Members:
        found = self._groups.get(group_id(name))
        if found is not None and set(found.group.spec.volumes) != set(volumes):
            raise errors.AlreadyExists("group snapshot", name, "of other volumes")
        if found is None:
            taken = [await self._snapshots.create(f"{name} {volume}", volume) for volume in volumes]
            ids = tuple(each.meta.name for each in taken)
            status = SnapshotGroupStatus(SnapshotPhase.READY, taken[0].status.created_at)
            group = SnapshotGroup(Meta(group_id(name), 1), SnapshotGroupSpec(name, tuple(volumes), ids), status)
            members = tuple(replace(each, spec=replace(each.spec, group=group.meta.name)) for each in taken)
            found = self._groups[group.meta.name] = Members(group, members)
        return found

    async def delete(self, group: str, snapshots: Sequence[str]) -> None:
        if group in self._groups:
            await self.get(group, snapshots)
            for name in self._groups.pop(group).group.spec.snapshots:
                await self._snapshots.delete(name)

    async def get(self, group: str, snapshots: Sequence[str]) -> Members:
        if group not in self._groups:
            raise errors.NotFound("group snapshot", group)
        if snapshots and set(snapshots) != set(self._groups[group].group.spec.snapshots):
            raise errors.InvalidArgument("snapshot_ids", "not those of the group")
        return self._groups[group]
