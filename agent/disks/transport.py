"""How a block device is reached, and the tier that follows from it."""

from __future__ import annotations

import re
from enum import StrEnum

from agent.disks.source import Source
from agent.model import Tier


class Transport(StrEnum):
    NVME = "nvme"
    """NVMe over PCI Express."""
    NVME_TCP = "nvme-tcp"
    NVME_RDMA = "nvme-rdma"
    NVME_FC = "nvme-fc"
    NVME_LOOP = "nvme-loop"
    NVME_FABRICS = "nvme-fabrics"
    """NVMe, but not known to be on the PCI bus of this machine."""
    SATA = "sata"
    SAS = "sas"
    SCSI = "scsi"
    """SCSI by another way: a RAID controller, virtio-scsi."""
    USB = "usb"
    VIRTIO = "virtio"
    XEN = "xen"
    PMEM = "pmem"
    MMC = "mmc"
    ISCSI = "iscsi"
    FC = "fc"
    MD = "md"
    DM = "dm"
    LOOP = "loop"
    NBD = "nbd"
    RBD = "rbd"
    DRBD = "drbd"
    UBLK = "ublk"
    ZVOL = "zvol"
    BCACHE = "bcache"
    MEMORY = "memory"
    """ram or zram: gone at the next boot."""
    OPTICAL = "optical"
    FLOPPY = "floppy"
    OTHER = "other"


FABRICS = frozenset(
    {Transport.NVME_TCP, Transport.NVME_RDMA, Transport.NVME_FC, Transport.NVME_LOOP, Transport.NVME_FABRICS}
)
NETWORK = FABRICS | {Transport.ISCSI, Transport.FC, Transport.NBD, Transport.RBD, Transport.DRBD}

_BY_NAME = (
    (re.compile(r"loop\d+"), Transport.LOOP),
    (re.compile(r"dm-\d+"), Transport.DM),
    (re.compile(r"md(\d+|_.+)"), Transport.MD),
    (re.compile(r"z?ram\d+"), Transport.MEMORY),
    (re.compile(r"nbd\d+"), Transport.NBD),
    (re.compile(r"rbd\d+"), Transport.RBD),
    (re.compile(r"drbd\d+"), Transport.DRBD),
    (re.compile(r"ublkb\d+"), Transport.UBLK),
    (re.compile(r"zd\d+"), Transport.ZVOL),
    (re.compile(r"bcache\d+"), Transport.BCACHE),
    (re.compile(r"pmem\d.*"), Transport.PMEM),
    (re.compile(r"mmcblk\d.*"), Transport.MMC),
    (re.compile(r"sr\d+"), Transport.OPTICAL),
    (re.compile(r"fd\d+"), Transport.FLOPPY),
    (re.compile(r"xvd[a-z]+"), Transport.XEN),
)
_BY_PATH = (
    # First what is nearest to the disk: a SATA disk behind USB is a USB disk, one behind a SAS expander a SAS disk.
    (re.compile(r"/usb\d+/"), Transport.USB),
    (re.compile(r"/session\d+/target"), Transport.ISCSI),
    (re.compile(r"/rport-"), Transport.FC),
    (re.compile(r"/end_device-"), Transport.SAS),
    (re.compile(r"/ata\d+/"), Transport.SATA),
    (re.compile(r"/target\d+:"), Transport.SCSI),
    (re.compile(r"/virtio\d+/block/"), Transport.VIRTIO),
)
_NVME = re.compile(r"nvme\d+n\d+")
_NVME_PATH = re.compile(r"nvme\d+c\d+n\d+")
_CONTROLLER = re.compile(r"nvme\d+")
_NVME_TRANSPORTS = {
    "pcie": Transport.NVME,
    "tcp": Transport.NVME_TCP,
    "rdma": Transport.NVME_RDMA,
    "fc": Transport.NVME_FC,
    "loop": Transport.NVME_LOOP,
}
_ROTATION_TOLD = frozenset(
    {Transport.NVME, Transport.SATA, Transport.SAS, Transport.SCSI, Transport.ISCSI, Transport.FC, Transport.MD}
)
"""Where the kernel's flag comes from the disk itself. Elsewhere 1 is only what a new queue starts with."""


def is_nvme_path(source: Source, name: str) -> bool:
    """Whether it is one path of a namespace with several, which the kernel hides behind the namespace's own device."""
    return _NVME_PATH.fullmatch(name) is not None or source.read(f"class/block/{name}/hidden") == "1"


def controllers(source: Source, name: str) -> list[str]:
    """Folders of the NVMe controllers that serve a namespace: one, or with native multipath any number."""
    device = f"class/block/{name}/device"
    if source.read(f"{device}/transport") is not None:
        return [device]
    # The device of a multipath head is the subsystem, which links to its controllers.
    return [f"{device}/{entry}" for entry in source.entries(device) if _CONTROLLER.fullmatch(entry)]


def transport(source: Source, name: str, sys_path: str) -> Transport:
    """How the device is reached. OTHER when nothing told: such a disk is never claimed."""
    if _NVME.fullmatch(name) or _NVME_PATH.fullmatch(name):
        return _nvme(source, name)
    by_name = next((kind for pattern, kind in _BY_NAME if pattern.fullmatch(name)), None)
    return by_name or next((kind for pattern, kind in _BY_PATH if pattern.search(f"/{sys_path}")), Transport.OTHER)


def _nvme(source: Source, name: str) -> Transport:
    told = {source.read(f"{controller}/transport") or "" for controller in controllers(source, name)}
    kinds = {_NVME_TRANSPORTS.get(each, Transport.NVME_FABRICS) for each in told} or {Transport.NVME_FABRICS}
    # One path over a network is enough to make it somebody else's disk.
    return next((kind for kind in sorted(kinds) if kind is not Transport.NVME), Transport.NVME)


def rotational(kind: Transport, flag: str | None, rpm: str | None) -> bool | None:
    """Whether it is a spinning disk; None: not known.

    `flag` is queue/rotational, which USB, virtio and loop devices set without knowing; `rpm` is what the disk itself
    told udev (ID_ATA_ROTATION_RATE_RPM, 0: it does not rotate).
    """
    if rpm is not None and rpm.isascii() and rpm.isdigit():
        return int(rpm[:9]) > 0
    if flag == "0":
        return False
    return True if flag == "1" and kind in _ROTATION_TOLD else None


def tier(kind: Transport, spins: bool | None, override: Tier | None = None) -> Tier:
    """The tier a disk serves: `override` (Disk.spec.tier_override) wins, then rotation, then the transport."""
    if override is not None:
        return override
    if spins:
        return Tier.HDD
    return Tier.NVME if kind is Transport.NVME or kind in FABRICS else Tier.SSD
