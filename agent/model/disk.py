"""Disk: a block device or file, and the pool on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from agent.model.common import POOL_PREFIX, Condition, Meta, Provisioning, Tier


class DiskPhase(StrEnum):
    AVAILABLE = "Available"
    INELIGIBLE = "Ineligible"
    FORMATTING = "Formatting"
    """Cleared as blank, pool creation begun: a crash here may leave half a label that is ours to overwrite."""
    READY = "Ready"
    RELEASING = "Releasing"
    """Found empty, its pool is being taken off: what a crash leaves of that pool is taken off too."""
    FAILED = "Failed"
    MISSING = "Missing"


class DiskDriver(StrEnum):
    """Who drives a disk: the kernel, or the target, by a driver that the kernel has for this."""

    KERNEL = "kernel"
    USERSPACE = "userspace"


class FreeSpace(StrEnum):
    """What the free space of a pool holds, as far as is known (see agent.pools.zeroing)."""

    ZEROED = "Zeroed"
    DELETING = "Deleting"
    """All that is not zeroed is being zeroed by deletions, which the death of the target interrupts."""
    UNKNOWN = "Unknown"
    """It may hold what others wrote."""


class Health(StrEnum):
    HEALTHY = "Healthy"
    DEGRADED = "Degraded"
    """Serves, and should be replaced before it fails."""
    FAILING = "Failing"
    """It or its maker expects it to lose data: takes no new volumes."""
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """An lvstore as it was recorded last; what is free now the placement ledger knows."""

    uuid: str = ""
    """UUID of the lvstore; empty: there is no pool."""
    size_bytes: int = 0
    """What volumes can have of it."""
    free_bytes: int = 0
    """What no volume had of it when it was recorded last."""
    cluster_bytes: int = 0
    """Unit in which it is given out."""
    device_bytes: int = 0
    """Size of the disk that the pool makes use of; less than the disk's when that has grown. 0: not recorded."""
    free_space: FreeSpace = FreeSpace.ZEROED
    """Whether free space may hold what others wrote: Deleting and Unknown are zeroed before anybody gets it."""


@dataclass(frozen=True, slots=True)
class UnrecordedData:
    """Data of ours on a disk of which there is no Volume or Snapshot."""

    name: str
    """The id of the volume or snapshot whose data they are."""
    size_bytes: int = 0
    """Size of the volume, or of one made of the snapshot."""
    lvol_uuid: str = ""
    """UUID of the lvol."""
    provisioning: Provisioning = Provisioning.THIN
    """Whether its room is taken at once or as it is written."""
    parent: str = ""
    """The snapshot that they stand on; empty: none."""


@dataclass(frozen=True, slots=True)
class DiskSpec:
    claimed: bool | None = None
    """None: nobody has said anything, the rules of the configuration decide. False: they do not."""
    tier_override: Tier | None = None
    """Tier to serve in place of its own."""
    driver: DiskDriver | None = None
    """None: it stays where it is, with the kernel unless a command moved it. Changed while it is not in service."""
    adopt: tuple[str, ...] = ()
    """Of `status.unrecorded`: what is to get a record. A name goes from here when that is done."""
    discard: tuple[str, ...] = ()
    """Of `status.unrecorded`: what is to be DESTROYED. A name goes from here when that is done."""


@dataclass(frozen=True, slots=True)
class DiskStatus:
    node: str = ""
    """The node that has it."""
    path: str = ""
    """Its device or file there, which may change."""
    links: tuple[str, ...] = ()
    """Names in /dev/disk that lead to it."""
    serial: str = ""
    """Serial number, as it says itself."""
    wwid: str = ""
    """World-wide name, as the kernel says."""
    model: str = ""
    """Vendor and model, as it says itself."""
    transport: str = ""
    """How it is connected: nvme, sata, sas, usb, file, ..."""
    rotational: bool | None = None
    """Whether it has turning platters; absent: not known."""
    size_bytes: int = 0
    """Size of the whole disk."""
    block_bytes: int = 0
    """Logical block size: the unit of reading and writing."""
    physical_block_bytes: int = 0
    """What it really writes at once; 0: not known."""
    firmware: str = ""
    """Version of its firmware."""
    numa_node: int | None = None
    """NUMA node it is nearest to; absent: not known."""
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
    """Its own tier, by what it is."""
    driver: DiskDriver = DiskDriver.KERNEL
    """Who drives it now."""
    bdev: str = ""
    """Name of its base bdev where the target chose it (user-space driver); empty: ours."""
    eligible: bool = False
    """Whether it could be claimed."""
    reasons: tuple[str, ...] = ()
    """Why it cannot be claimed."""
    phase: DiskPhase = DiskPhase.AVAILABLE
    """How far it is on its way into service, or out of it."""
    message: str = ""
    """Why it is in that phase, and what to do about it."""
    pool: PoolStatus = field(default_factory=PoolStatus)
    """The pool on it."""
    conditions: tuple[Condition, ...] = ()
    """What is out of the ordinary, or watched."""
    unrecorded: tuple[UnrecordedData, ...] = ()
    """Data on it that have no record; they keep their room until somebody says what becomes of them."""


@dataclass(frozen=True, slots=True)
class Disk:
    meta: Meta
    spec: DiskSpec = field(default_factory=DiskSpec)
    status: DiskStatus = field(default_factory=DiskStatus)

    @property
    def tier(self) -> Tier:
        """The tier it serves."""
        return self.spec.tier_override or self.status.tier

    @property
    def bdev_name(self) -> str:
        """Name of the base bdev in the target."""
        return self.status.bdev or f"disk-{self.meta.name}"

    @property
    def pool_name(self) -> str:
        """Name of the lvstore on it."""
        return POOL_PREFIX + self.meta.name
