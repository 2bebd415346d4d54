"""Stateful in-memory volumes and node side behind the CSI services: same contract as the real ones, no target."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from agent import errors
from agent.model import (
    AccessMode,
    Attachment,
    Endpoint,
    Meta,
    Provisioning,
    Replica,
    ReplicaStatus,
    TargetState,
    Tier,
    Volume,
    VolumePhase,
    VolumeSpec,
    VolumeStatus,
)
from agent.pools.ledger import Capacity
from agent.pools.topology import Segment
from agent.volumes.rules.conditions import VolumeCondition
from agent.volumes.rules.modes import Block, VolumeMode
from agent.volumes.rules.names import volume_id, volume_nqn
from agent.volumes.rules.requests import CreateVolume, QosChange
from agent.volumes.rules.volume_stats import VolumeStats

MIB = 1 << 20
POOL_BYTES = 1 << 40


class MemoryVolumes:
    """Volumes of one machine in zone `rack-1` with two pools per tier, none of hdd.

    `gate` holds every operation back while cleared.
    """

    def __init__(self, node: str = "node-a", address: str = "127.0.0.1") -> None:
        self.node = node
        self.zone = "rack-1"
        self.preferred: tuple[Segment, ...] = ()
        self.sick: dict[str, str] = {}
        self.address = address
        self.state = TargetState.READY
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()
        self.cancelled = 0
        self._volumes: dict[str, Volume] = {}

    def health(self) -> TargetState:
        return self.state

    async def _enter(self) -> None:
        self.entered.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.failure:
            raise self.failure

    async def create(self, request: CreateVolume) -> Volume:
        await self._enter()
        if not request.topology.allows(self.node, self.zone):
            raise errors.ResourceExhausted(f"no disk in {request.topology}")
        self.preferred = request.topology.preferred
        size = -(-request.required_bytes // MIB) * MIB
        name = volume_id(request.name)
        if found := self._volumes.get(name):
            fits = found.spec.size_bytes >= request.required_bytes
            if not fits or (request.limit_bytes and found.spec.size_bytes > request.limit_bytes):
                raise errors.AlreadyExists("volume", request.name, "with another size")
            if found.spec.parameters != request.parameters:
                raise errors.AlreadyExists("volume", request.name, "with other parameters")
            return found
        if request.limit_bytes and size > request.limit_bytes:
            raise errors.OutOfRange(f"rounded up it is {size} bytes, over the limit")
        if size > POOL_BYTES:
            raise errors.ResourceExhausted(f"no disk of tier {request.tier} has {size} bytes left")
        spec = VolumeSpec(
            csi_name=request.name,
            size_bytes=size,
            tier=request.tier,
            provisioning=request.provisioning,
            placement=(Replica("r0", self.node, "disk0"),),
            frontend=request.frontend,
            qos=request.qos,
            connect=request.connect,
            parameters=request.parameters,
            source=request.source,
        )
        volume = Volume(Meta(name, 1), spec)
        endpoint = Endpoint(volume_nqn(name), self.address, 4420)
        replica = ReplicaStatus("r0", True, f"uuid-of-{name}", endpoint)
        self._volumes[name] = replace(volume, status=VolumeStatus(VolumePhase.READY, size, (replica,)))
        return self._volumes[name]

    async def delete(self, volume_id: str) -> None:
        await self._enter()
        found = self._volumes.get(volume_id)
        if found and found.spec.attachments:
            raise errors.FailedPrecondition(f"volume {volume_id} is published")
        self._volumes.pop(volume_id, None)

    async def get(self, volume_id: str) -> Volume:
        await self._enter()
        if volume_id not in self._volumes:
            raise errors.NotFound("volume", volume_id)
        return self._volumes[volume_id]

    async def list(self) -> list[Volume]:
        await self._enter()
        return [self._volumes[name] for name in sorted(self._volumes)]

    async def conditions(self, volumes: Sequence[Volume]) -> list[VolumeCondition]:
        await self._enter()
        sick = {name for name, text in self.sick.items() if text}
        return [VolumeCondition(each.meta.name in sick, self.sick.get(each.meta.name, "fine")) for each in volumes]

    async def publish(self, volume_id: str, node: str, *, access_mode: AccessMode, readonly: bool) -> Volume:
        volume = await self.get(volume_id)
        if node != self.node:
            raise errors.NotFound("node", node)
        wanted = Attachment(node, f"nqn.host:{node}", access_mode, readonly)
        if volume.spec.attachments and volume.spec.attachments != (wanted,):
            raise errors.AlreadyExists("attachment", volume_id, "in another way")
        self._volumes[volume_id] = replace(volume, spec=replace(volume.spec, attachments=(wanted,)))
        return self._volumes[volume_id]

    async def unpublish(self, volume_id: str, node: str | None) -> None:
        await self._enter()
        if volume := self._volumes.get(volume_id):
            kept = tuple(each for each in volume.spec.attachments if node and each.node != node)
            self._volumes[volume_id] = replace(volume, spec=replace(volume.spec, attachments=kept))

    async def modify(self, volume_id: str, change: QosChange) -> Volume:
        volume = await self.get(volume_id)
        spec = replace(volume.spec, qos=change.applied_to(volume.spec.qos))
        self._volumes[volume_id] = replace(volume, spec=spec)
        return self._volumes[volume_id]

    async def expand(self, volume_id: str, required_bytes: int, limit_bytes: int) -> Volume:
        volume = await self.get(volume_id)
        size = max(volume.spec.size_bytes, -(-required_bytes // MIB) * MIB)
        if size > POOL_BYTES or (limit_bytes and size > limit_bytes):
            raise errors.OutOfRange(f"{size} bytes cannot be served")
        grown = replace(
            volume, spec=replace(volume.spec, size_bytes=size), status=replace(volume.status, size_bytes=size)
        )
        self._volumes[volume_id] = grown
        return grown

    async def capacity(self, tier: Tier, provisioning: Provisioning, segment: Segment) -> Capacity:
        await self._enter()
        here = tier is not Tier.HDD and segment.has(self.node, self.zone)
        return Capacity(2 * POOL_BYTES, POOL_BYTES, MIB) if here else Capacity()


@dataclass
class Staged:
    """A staged volume and where it is published: target path to read-only."""

    mode: VolumeMode
    readonly: bool
    targets: dict[Path, bool] = field(default_factory=dict)


class MemoryNode:
    """The node side: real directories and files for targets, no mounts."""

    def __init__(self) -> None:
        self.staged: dict[tuple[str, Path], Staged] = {}

    async def stage(self, volume: Volume, staging_path: Path, mode: VolumeMode, *, readonly: bool = False) -> None:
        wanted = Staged(mode, readonly)
        found = self.staged.setdefault((volume.meta.name, staging_path), wanted)
        if (found.mode, found.readonly) != (mode, readonly):
            raise errors.AlreadyExists("stage", str(staging_path), "in another way")

    async def unstage(self, volume_id: str, volume: Volume | None, staging_path: Path) -> None:
        self.staged.pop((volume_id, staging_path), None)

    async def publish(
        self, volume: Volume, staging_path: Path, target_path: Path, mode: VolumeMode, *, readonly: bool
    ) -> None:
        found = self.staged.get((volume.meta.name, staging_path))
        if found is None:
            raise errors.FailedPrecondition(f"volume {volume.meta.name} is not staged at {staging_path}")
        _make(target_path, block=isinstance(mode, Block))
        found.targets[target_path] = readonly

    async def unpublish(self, volume_id: str, target_path: Path) -> None:
        for (name, _), staged in self.staged.items():
            if name == volume_id and staged.targets.pop(target_path, None) is not None:
                _remove(target_path)

    async def expand(self, volume: Volume, path: Path) -> int:
        self._at(volume, path)
        return volume.status.size_bytes

    async def stats(self, volume: Volume, path: Path) -> VolumeStats:
        if isinstance(self._at(volume, path).mode, Block):
            return VolumeStats(total_bytes=volume.status.size_bytes)
        return VolumeStats(volume.status.size_bytes, 100, volume.status.size_bytes - 100, 1000, 11, 989)

    def _at(self, volume: Volume, path: Path) -> Staged:
        for (name, staging), staged in self.staged.items():
            if name == volume.meta.name and (path == staging or path in staged.targets):
                return staged
        raise errors.NotFound("volume path", str(path))


def _make(target: Path, *, block: bool) -> None:
    if block:
        target.touch()
    else:
        target.mkdir(exist_ok=True)


def _remove(target: Path) -> None:
    if target.is_file():
        target.unlink()
    else:
        target.rmdir()
