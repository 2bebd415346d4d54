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
    """Name of the copy, unique in its volume."""
    node: str
    """The node that has it."""
    disk: str
    """The Disk that it lies on."""


@dataclass(frozen=True, slots=True)
class Qos:
    """Limits in I/O operations and bytes a second; 0 is unlimited."""

    rw_iops: int = 0
    """Operations a second, reads and writes together."""
    rw_bytes_per_second: int = 0
    """Bytes a second, reads and writes together."""
    read_bytes_per_second: int = 0
    """Bytes read a second."""
    write_bytes_per_second: int = 0
    """Bytes written a second."""


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
    """Between attempts to connect again."""
    keep_alive_s: int = 5
    """After so long without an answer the connection counts as lost."""
    io_queues: int = 0
    """0: one for each CPU."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """The permission for one node to reach the volume: written at ControllerPublish, the fence itself."""

    node: str
    """The node that may reach it."""
    host_nqn: str
    """By which the target knows that node."""
    access_mode: AccessMode = AccessMode.RWO
    """What others may do at the same time."""
    readonly: bool = False
    """Whether the node may only read."""


class SourceKind(StrEnum):
    SNAPSHOT = "snapshot"
    VOLUME = "volume"


@dataclass(frozen=True, slots=True)
class VolumeSource:
    """What a volume was made of: the snapshot or volume `id` names.

    `snapshot` is the snapshot whose data it got: that one, or the internal one taken of the volume for this purpose.
    """

    kind: SourceKind
    """Whether it is a snapshot or a volume."""
    id: str
    """Its id."""
    snapshot: str = ""
    """The snapshot whose data it got."""


@dataclass(frozen=True, slots=True)
class VolumeSpec:
    """`csi_name` is the name CreateVolume was called with; `meta.name` is the volume id derived from it."""

    csi_name: str
    """The name CreateVolume was called with; empty: not known yet, of a volume that came with a disk."""
    size_bytes: int
    """Its size, in whole clusters. It never shrinks."""
    tier: Tier
    """Kind of disk it lies on."""
    provisioning: Provisioning = Provisioning.THIN
    """Whether its room is taken at once (thick) or as it is written (thin)."""
    replica_count: int = 1
    """Number of copies."""
    placement: tuple[Replica, ...] = ()
    """Where its copies lie; empty: nowhere, it was given up."""
    frontend: Frontend = Frontend.NVME_TCP
    """How hosts see it as a block device."""
    qos: Qos = field(default_factory=Qos)
    """Limits now: of the StorageClass or of creation, as changed since."""
    connect: ConnectOptions = field(default_factory=ConnectOptions)
    """How hosts hold on to it."""
    attachments: tuple[Attachment, ...] = ()
    """The nodes that may reach it."""
    parameters: tuple[tuple[str, str], ...] = ()
    """The StorageClass parameters as given, sorted: what a repeated CreateVolume is compared with."""
    source: VolumeSource | None = None
    """What it was made of."""
    requested_bytes: int = 0
    """Size that was asked for last, before it was rounded up; 0: not known."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a host connects: NVMe/TCP address, port and subsystem NQN."""

    nqn: str
    """Subsystem NQN."""
    address: str
    """IP address."""
    port: int
    """TCP port."""


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    name: str
    """The copy in `spec.placement`."""
    ready: bool = False
    """Whether it can be used."""
    lvol_uuid: str = ""
    """UUID of the lvol, which is also the namespace's UUID and so the host's /dev/disk/by-id/nvme-uuid.<uuid>."""
    endpoint: Endpoint | None = None
    """Where hosts connect; absent: it is not exported."""


@dataclass(frozen=True, slots=True)
class VolumeStatus:
    phase: VolumePhase = VolumePhase.PENDING
    """Failed: its data are gone."""
    size_bytes: int = 0
    """Real size: the requested one rounded up to the pool's clusters."""
    replicas: tuple[ReplicaStatus, ...] = ()
    """What there is of each copy."""
    conditions: tuple[Condition, ...] = ()
    """What is out of the ordinary."""
    message: str = ""
    """Why it is in that phase, and what to do about it."""
    observed: int = 0
    """The generation that the node of the data has settled, or failed to (`failure`)."""
    failure: Failure | None = None
    """Why the last wish could not be settled; absent: it was."""


@dataclass(frozen=True, slots=True)
class Volume:
    meta: Meta
    spec: VolumeSpec
    status: VolumeStatus = field(default_factory=VolumeStatus)
