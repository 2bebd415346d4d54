"""The resources of the domain (design section 3): what is desired (`spec`) and what is observed (`status`).

Frozen dataclasses, no I/O. Sizes are bytes, times are seconds since the epoch. A resource is changed by making a new
one with `dataclasses.replace` and handing it to the store, which checks `meta.version`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

NQN_PREFIX = "nqn.2026-11.storage.quarry"
"""Prefix of every subsystem we own; nothing else is ever deleted."""

POOL_PREFIX = "quarry-"
"""Prefix of every lvstore we own: `quarry-<disk id>`."""

LVOL_NAME_MAX = 63
"""SPDK_LVOL_NAME_MAX is 64 with the terminating NUL (measured: 63 accepted, 64 answers -22)."""


class Tier(StrEnum):
    NVME = "nvme"
    SSD = "ssd"
    HDD = "hdd"


class Provisioning(StrEnum):
    THIN = "thin"
    THICK = "thick"


class Frontend(StrEnum):
    """How a host sees a volume as a block device."""

    NVME_TCP = "nvme-tcp"
    UBLK = "ublk"
    LOOP = "loop"

    @property
    def is_local(self) -> bool:
        """Only the node that has the data can attach it."""
        return self is not Frontend.NVME_TCP


class AccessMode(StrEnum):
    """CSI access modes by their Kubernetes short names."""

    RWO = "ReadWriteOnce"
    RWOP = "ReadWriteOncePod"
    ROX = "ReadOnlyMany"
    RWX = "ReadWriteMany"
    """Raw block only: a filesystem of ours knows of one machine that writes."""
    ONE_WRITER = "OneWriterManyReaders"
    """CSI's MULTI_NODE_SINGLE_WRITER, which Kubernetes has no name for. Raw block only."""

    @property
    def is_raw(self) -> bool:
        """Only for raw block devices: others may write beside the one who has it."""
        return self in (AccessMode.RWX, AccessMode.ONE_WRITER)


class ConditionStatus(StrEnum):
    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True)
class Meta:
    """What every resource carries. `version` is the store's resource version (0: never stored)."""

    name: str
    version: int = 0
    created_at: float = 0.0
    deleting: bool = False


@dataclass(frozen=True, slots=True)
class Condition:
    type: str
    status: ConditionStatus
    reason: str = ""
    message: str = ""
    changed_at: float = 0.0


# --- StorageNode -----------------------------------------------------------------------------------------------


class TargetState(StrEnum):
    UNKNOWN = "Unknown"
    STARTING = "Starting"
    """Connected; base bdevs and exports are being rebuilt."""
    READY = "Ready"
    UNREACHABLE = "Unreachable"


@dataclass(frozen=True, slots=True)
class StorageNodeSpec:
    cordoned: bool = False


@dataclass(frozen=True, slots=True)
class StorageNodeStatus:
    addresses: tuple[str, ...] = ()
    zone: str = ""
    """The part of the cluster that fails together (a rack, a room, a cloud's zone); empty: none told."""
    host_nqn: str = ""
    frontends: tuple[Frontend, ...] = ()
    max_volumes: int = 0
    """How many volumes may be published to it; 0: no limit."""
    target_state: TargetState = TargetState.UNKNOWN
    target_version: str = ""
    last_heartbeat: float = 0.0


@dataclass(frozen=True, slots=True)
class StorageNode:
    meta: Meta
    spec: StorageNodeSpec = field(default_factory=StorageNodeSpec)
    status: StorageNodeStatus = field(default_factory=StorageNodeStatus)


# --- Disk ------------------------------------------------------------------------------------------------------


class DiskPhase(StrEnum):
    AVAILABLE = "Available"
    INELIGIBLE = "Ineligible"
    FORMATTING = "Formatting"
    """Cleared as blank, pool creation begun: a crash here may leave half a label that is ours to overwrite."""
    READY = "Ready"
    FAILED = "Failed"
    MISSING = "Missing"


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """An lvstore as it was recorded last; what is free now the placement ledger knows."""

    uuid: str = ""
    size_bytes: int = 0
    free_bytes: int = 0
    cluster_bytes: int = 0


@dataclass(frozen=True, slots=True)
class DiskSpec:
    claimed: bool = False
    tier_override: Tier | None = None
    driver: str = "kernel"


@dataclass(frozen=True, slots=True)
class DiskStatus:
    node: str = ""
    path: str = ""
    links: tuple[str, ...] = ()
    serial: str = ""
    wwid: str = ""
    model: str = ""
    transport: str = ""
    rotational: bool | None = None
    size_bytes: int = 0
    block_bytes: int = 0
    """Logical block size: the unit of reading and writing."""
    physical_block_bytes: int = 0
    firmware: str = ""
    numa_node: int | None = None
    pci_addresses: tuple[str, ...] = ()
    """Of its controllers: one, or more when there are several paths."""
    partitions: tuple[str, ...] = ()
    """Kernel names, as in `holders`: they are of now and may be of another disk after a reboot."""
    holders: tuple[str, ...] = ()
    """What the kernel has built on it: volumes, RAID, encryption."""
    mount_points: tuple[str, ...] = ()
    """Also of what is built on it; the first few."""
    signatures: tuple[str, ...] = ()
    """What lies on it, in words. Empty: nothing, if it is eligible, else nothing known."""
    disk_sequence: int = 0
    """The kernel's DISKSEQ: never used again while the machine runs, unlike the name. 0: not known."""
    tier: Tier = Tier.SSD
    eligible: bool = False
    reasons: tuple[str, ...] = ()
    phase: DiskPhase = DiskPhase.AVAILABLE
    message: str = ""
    pool: PoolStatus = field(default_factory=PoolStatus)
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class Disk:
    meta: Meta
    spec: DiskSpec = field(default_factory=DiskSpec)
    status: DiskStatus = field(default_factory=DiskStatus)

    @property
    def bdev_name(self) -> str:
        """Name of the base bdev in the target."""
        return f"disk-{self.meta.name}"

    @property
    def pool_name(self) -> str:
        """Name of the lvstore on it."""
        return POOL_PREFIX + self.meta.name


# --- Volume ----------------------------------------------------------------------------------------------------


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


@dataclass(frozen=True, slots=True)
class Volume:
    meta: Meta
    spec: VolumeSpec
    status: VolumeStatus = field(default_factory=VolumeStatus)


# --- Snapshot --------------------------------------------------------------------------------------------------


class SnapshotPhase(StrEnum):
    PENDING = "Pending"
    READY = "Ready"
    DELETING = "Deleting"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True)
class SnapshotSpec:
    """`meta.name` is the snapshot id and the name of its lvol, which lies where the volume lies."""

    csi_name: str
    volume: str
    node: str = ""
    disk: str = ""
    size_bytes: int = 0
    """Size of the volume when the snapshot was asked for."""
    provisioning: Provisioning = Provisioning.THIN
    """That of the volume: a snapshot weighs what its volume does."""
    owner: str = ""
    """Of an internal snapshot, which nobody but the agent sees: the volume that is being cloned with its help."""
    group: str = ""
    """The group it was taken with and is deleted with."""


@dataclass(frozen=True, slots=True)
class SnapshotStatus:
    phase: SnapshotPhase = SnapshotPhase.PENDING
    size_bytes: int = 0
    created_at: float = 0.0
    lvols: tuple[tuple[str, str], ...] = ()
    """(replica name, lvol uuid) pairs."""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    meta: Meta
    spec: SnapshotSpec
    status: SnapshotStatus = field(default_factory=SnapshotStatus)


# --- SnapshotGroup ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SnapshotGroupSpec:
    """`snapshots` are those of `volumes`, in the same order."""

    csi_name: str
    volumes: tuple[str, ...]
    snapshots: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SnapshotGroupStatus:
    """PENDING: they are being taken, and hosts of the volumes may be held back."""

    phase: SnapshotPhase = SnapshotPhase.PENDING
    created_at: float = 0.0


@dataclass(frozen=True, slots=True)
class SnapshotGroup:
    """Snapshots of several volumes at one point in time."""

    meta: Meta
    spec: SnapshotGroupSpec
    status: SnapshotGroupStatus = field(default_factory=SnapshotGroupStatus)


Resource = StorageNode | Disk | Volume | Snapshot | SnapshotGroup
