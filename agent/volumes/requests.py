"""What callers ask for."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.model import Frontend, Provisioning, Qos, Tier, VolumeSource
from agent.volumes.placement import Request
from agent.volumes.topology import ANYWHERE, Requirement


@dataclass(frozen=True)
class CreateVolume:
    """What CreateVolume asks for. `limit_bytes` 0: no limit; `required_bytes` 0, with a source only: its size."""

    name: str
    required_bytes: int
    tier: Tier
    limit_bytes: int = 0
    provisioning: Provisioning = Provisioning.THIN
    replica_count: int = 1
    frontend: Frontend = Frontend.NVME_TCP
    qos: Qos = field(default_factory=Qos)
    parameters: tuple[tuple[str, str], ...] = ()
    topology: Requirement = ANYWHERE
    source: VolumeSource | None = None
    disk: str = ""
    """The only disk it can be on: that of its source."""

    def placement(self, avoid: frozenset[str] = frozenset()) -> Request:
        """What placement needs to know of it. `avoid`: disks that refused it."""
        return Request(
            size_bytes=self.required_bytes,
            limit_bytes=self.limit_bytes,
            tier=self.tier,
            provisioning=self.provisioning,
            topology=self.topology,
            avoid=avoid,
            disk=self.disk,
        )
