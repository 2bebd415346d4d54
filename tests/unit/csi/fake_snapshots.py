"""Stateful in-memory snapshots behind the CSI services: same contract as the real ones, no target."""

from __future__ import annotations

from agent import errors
from agent.model import Meta, Snapshot, SnapshotPhase, SnapshotSpec, SnapshotStatus
from agent.volumes.names import snapshot_id

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
