"""What callers ask for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from agent.errors import AlreadyExists
from agent.model import ConnectOptions, Frontend, Provisioning, Qos, Tier, Volume, VolumeSource
from agent.pools.topology import ANYWHERE, Requirement
from agent.volumes.rules.placement import Request


@dataclass(frozen=True)
class QosChange:
    """Limits to set, in the units of Qos; None: that one stays as it is."""

    rw_iops: int | None = None
    rw_bytes_per_second: int | None = None
    read_bytes_per_second: int | None = None
    write_bytes_per_second: int | None = None

    def applied_to(self, qos: Qos) -> Qos:
        """`qos` with what is to be set."""

        def chosen(wish: int | None, now: int) -> int:
            return now if wish is None else wish

        return Qos(
            rw_iops=chosen(self.rw_iops, qos.rw_iops),
            rw_bytes_per_second=chosen(self.rw_bytes_per_second, qos.rw_bytes_per_second),
            read_bytes_per_second=chosen(self.read_bytes_per_second, qos.read_bytes_per_second),
            write_bytes_per_second=chosen(self.write_bytes_per_second, qos.write_bytes_per_second),
        )


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
    connect: ConnectOptions = field(default_factory=ConnectOptions)
    parameters: tuple[tuple[str, str], ...] = ()
    topology: Requirement = ANYWHERE
    source: VolumeSource | None = None
    disk: str = ""
    """The only disk it can be on: that of its source."""
    unfit: frozenset[str] = frozenset()
    """Nodes that do not offer its frontend."""

    def require_same(self, volume: Volume) -> None:
        """Raise AlreadyExists unless this describes `volume`, whose limits may have been changed since."""
        spec = volume.spec
        if spec.csi_name != self.name:
            raise AlreadyExists("volume", self.name, "under the same id with another name")
        if spec.size_bytes < self.required_bytes or (self.limit_bytes and spec.size_bytes > self.limit_bytes):
            raise AlreadyExists("volume", self.name, f"with {spec.size_bytes} bytes")
        if spec.parameters != self.parameters or (spec.tier is not self.tier and spec.source is None):
            raise AlreadyExists("volume", self.name, "with other parameters")
        if (spec.source and (spec.source.kind, spec.source.id)) != (self.source and (self.source.kind, self.source.id)):
            what = f"{spec.source.kind} {spec.source.id}" if spec.source else "nothing"
            raise AlreadyExists("volume", self.name, f"made of {what}")

    def completed(self, volume: Volume) -> Volume:
        """`volume`, which came with a disk and of which only size and data were known: its id proves its name."""
        spec = volume.spec
        return replace(
            volume,
            spec=replace(
                spec,
                csi_name=self.name,
                parameters=self.parameters,
                frontend=spec.frontend if spec.attachments else self.frontend,
                qos=self.qos,
                connect=self.connect,
                source=self.source,
            ),
        )

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
            unfit=self.unfit,
            frontend=self.frontend,
        )
