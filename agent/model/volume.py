"""Volume: what a user has, where its data lie and who may reach it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from agent.model.common import AccessMode, Condition, Failure, Frontend, Meta, Provisioning, Tier


class VolumePhase(StrEnum):
    PENDING = "Pending"
    READY = "Ready"
    DELETING = "Deleting"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True)
class Replica:
    """One copy of the volume's data: which disk of which node."""

    name: str
    node: str
    disk: str


@dataclass(frozen=True, slots=True)
class Qos:
    """Limits in I/O operations and bytes a second; 0 is unlimited."""

    rw_iops: int = 0
    rw_bytes_per_second: int = 0
    read_bytes_per_second: int = 0
    write_bytes_per_second: int = 0


QOS_IOPS_STEP, QOS_BYTES_STEP = 1000, 1 << 20
"""What SPDK rounds limits up to a multiple of (bdev_set_qos_limit)."""

QOS_IOPS_MAX, QOS_BYTES_MAX = 1_000_000_000, 1 << 40
"""SPDK counts a limit for each millisecond in 32 bits: 4.3e12 a second and more wrap around to next to nothing."""


@dataclass(frozen=True, slots=True)
class ConnectOptions:
    """How a host's NVMe/TCP initiator holds on to a volume. Times in seconds."""

    loss_timeout_s: int = -1
    """After so long without the target the device is gone and its I/O fails; -1: never."""
    reconnect_delay_s: int = 1
    keep_alive_s: int = 5
    io_queues: int = 0
    """0: one for each CPU."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """The permission for one node to reach the volume: written at ControllerPublish, the fence itself."""

    node: str
    host_nqn: str
    access_mode: AccessMode = AccessMode.RWO
    readonly: bool = False


class SourceKind(StrEnum):
    SNAPSHOT = "snapshot"
    VOLUME = "volume"


@dataclass(frozen=True, slots=True)
class VolumeSource:
    """What a volume was made of: the snapshot or volume `id` names.

    `snapshot` is the snapshot whose data it got: that one, or the internal one taken of the volume for this purpose.
    """

    kind: SourceKind
    id: str
    snapshot: str = ""


@dataclass(frozen=True, slots=True)
class VolumeSpec:
    """`csi_name` is the name CreateVolume was called with; `meta.name` is the volume id derived from it."""

    csi_name: str
    size_bytes: int
    tier: Tier
    provisioning: Provisioning = Provisioning.THIN
    replica_count: int = 1
    placement: tuple[Replica, ...] = ()
    frontend: Frontend = Frontend.NVME_TCP
    qos: Qos = field(default_factory=Qos)
    """Limits now: of the StorageClass or of creation, as changed since."""
    connect: ConnectOptions = field(default_factory=ConnectOptions)
    attachments: tuple[Attachment, ...] = ()
    parameters: tuple[tuple[str, str], ...] = ()
    """The StorageClass parameters as given, sorted: what a repeated CreateVolume is compared with."""
    source: VolumeSource | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a host connects: NVMe/TCP address, port and subsystem NQN."""

    nqn: str
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    name: str
    ready: bool = False
    lvol_uuid: str = ""
    """UUID of the lvol, which is also the namespace's UUID and so the host's /dev/disk/by-id/nvme-uuid.<uuid>."""
    endpoint: Endpoint | None = None


@dataclass(frozen=True, slots=True)
class VolumeStatus:
    phase: VolumePhase = VolumePhase.PENDING
    size_bytes: int = 0
    """Real size: the requested one rounded up to the pool's clusters."""
    replicas: tuple[ReplicaStatus, ...] = ()
    conditions: tuple[Condition, ...] = ()
    message: str = ""
    observed: int = 0
    """The generation that the node of the data has settled, or failed to (`failure`)."""
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Volume:
    meta: Meta
    spec: VolumeSpec
    status: VolumeStatus = field(default_factory=VolumeStatus)
