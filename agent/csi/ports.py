"""What the services need of the domain below them: two interfaces, implemented in agent.volumes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from agent.model import AccessMode, Provisioning, Snapshot, TargetState, Tier, Volume
from agent.pools.ledger import Capacity
from agent.pools.topology import Segment
from agent.volumes.rules.conditions import VolumeCondition
from agent.volumes.rules.members import Members
from agent.volumes.rules.modes import VolumeMode
from agent.volumes.rules.requests import CreateVolume, QosChange
from agent.volumes.rules.volume_stats import VolumeStats


class Prober(Protocol):
    """Whether the services can do their work."""

    def health(self) -> TargetState: ...


class VolumeReader(Protocol):
    """What the Node service asks of volumes."""

    async def get(self, volume_id: str) -> Volume: ...

    async def conditions(self, volumes: Sequence[Volume]) -> Sequence[VolumeCondition]: ...


class Volumes(Protocol):
    """Volumes wherever they are (agent.volumes.service.service.VolumeService). Every call may be repeated."""

    async def create(self, request: CreateVolume) -> Volume: ...

    async def delete(self, volume_id: str) -> None: ...

    async def get(self, volume_id: str) -> Volume: ...

    async def list(self) -> list[Volume]: ...

    async def publish(self, volume_id: str, node: str, *, access_mode: AccessMode, readonly: bool) -> Volume: ...

    async def unpublish(self, volume_id: str, node: str | None) -> None: ...

    async def expand(self, volume_id: str, required_bytes: int, limit_bytes: int) -> Volume: ...

    async def modify(self, volume_id: str, change: QosChange) -> Volume: ...

    async def capacity(self, tier: Tier, provisioning: Provisioning, segment: Segment) -> Capacity: ...

    async def conditions(self, volumes: Sequence[Volume]) -> Sequence[VolumeCondition]: ...

    def health(self) -> TargetState: ...


class Snapshots(Protocol):
    """Snapshots wherever they are (agent.volumes.service.snapshots.SnapshotService). Every call may be repeated."""

    async def create(self, name: str, volume_id: str) -> Snapshot: ...

    async def delete(self, snapshot: str) -> None: ...

    async def get(self, name: str) -> Snapshot: ...

    async def list(self, volume: str) -> list[Snapshot]: ...


class Groups(Protocol):
    """Groups of snapshots (agent.volumes.service.groups.GroupService). Every call may be repeated."""

    async def create(self, name: str, volumes: Sequence[str]) -> Members: ...

    async def delete(self, group: str, snapshots: Sequence[str]) -> None: ...

    async def get(self, group: str, snapshots: Sequence[str]) -> Members: ...


class NodeSide(Protocol):
    """Volumes on this machine (agent.volumes.attach.node.NodeVolumes). Every call may be repeated."""

    async def stage(self, volume: Volume, staging_path: Path, mode: VolumeMode, *, readonly: bool = False) -> None: ...

    async def unstage(self, volume_id: str, volume: Volume | None, staging_path: Path) -> None: ...

    async def publish(
        self, volume: Volume, staging_path: Path, target_path: Path, mode: VolumeMode, *, readonly: bool
    ) -> None: ...

    async def unpublish(self, volume_id: str, target_path: Path) -> None: ...

    async def expand(self, volume: Volume, path: Path) -> int: ...

    async def stats(self, volume: Volume, path: Path) -> VolumeStats: ...
