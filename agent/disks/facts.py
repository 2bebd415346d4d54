"""What there is to know of one block device without reading from it: udev and sysfs, interpreted once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from agent.disks import ours
from agent.disks import transport as transports
from agent.disks.identity import Marks, identity
from agent.disks.source import Number, Source, Usage
from agent.disks.transport import Transport

SECTOR_BYTES = 512
"""Unit of sysfs `size`, whatever the block size is."""

SIZE_BYTES_MAX = 1 << 60
"""Nothing sold comes near an exbibyte: more is a broken device."""

BLOCK_BYTES_MAX = 1 << 16
TEXT_MAX = 256
LINKS_MAX = 64
MOUNTS_SHOWN = 16
STACK_MAX = 1024
"""Devices followed upwards from one disk (partitions, then what is built on them)."""

SYSTEM_MOUNTS = frozenset({"/", "/boot", "/boot/efi", "/efi", "/usr", "/var", "/etc"})
_STABLE_LINKS = ("/dev/disk/by-id/", "/dev/disk/by-path/")
"""Links that stay when the content changes: by-uuid and by-label go with the filesystem."""

_PCI = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_VPD_SERIAL = re.compile(r"\x00\\x80..(.*)", re.DOTALL)
"""SPC-4 7.8.13, Unit Serial Number page: code 80h, two bytes of length. 80h is no UTF-8 and was replaced."""


@dataclass(frozen=True, slots=True)
class Partition:
    name: str
    fs_type: str = ""
    """By udev; "" is nothing or not known."""


@dataclass(frozen=True, slots=True)
class Facts:
    """One whole block device. Sizes in bytes; "" and None are not known."""

    name: str
    node: str
    transport: Transport
    sequence: int | None = None
    """DISKSEQ (Linux 5.15): another device under a name that was used before has another one."""
    path_of: str = ""
    """It is one of several paths to this device (or to one of this kind, when its name is not known)."""
    multipath: bool = False
    """It is a device-mapper map over several paths to a disk: `transport` is that of the paths."""
    identity: str = ""
    wwid: str = ""
    serial: str = ""
    model: str = ""
    firmware: str = ""
    rotational: bool | None = None
    size_bytes: int | None = None
    block_bytes: int | None = None
    physical_block_bytes: int | None = None
    numa_node: int | None = None
    pci_addresses: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    backing: str = ""
    """The file of a loop device, the name of a device-mapper device."""
    readonly: bool = False
    removable: bool = False
    zoned: bool = False
    suspended: bool = False
    """A device-mapper device that holds I/O back: reading it would wait."""
    partitions: tuple[Partition, ...] = ()
    holders: tuple[str, ...] = ()
    below: tuple[str, ...] = ()
    """The whole devices it is built of itself (device-mapper, md, a loop device on a block device)."""
    told_content: tuple[str, ...] = ()
    """Signatures by udev, for when reading the device is not allowed."""
    mounts: tuple[str, ...] = ()
    boot: bool = False
    swap: bool = False
    loops: tuple[str, ...] = ()
    volume: str = ""
    """The volume of Quarry that it shows, in words."""

    def same_device_as(self, other: Facts) -> bool:
        """Whether nothing differs that hints at another content: mounts come and go without changing it."""
        return replace(self, mounts=(), boot=False) == replace(other, mounts=(), boot=False)


def read(source: Source, name: str, usage: Usage) -> Facts | None:
    """The facts of a whole device; None when it is gone, or has no size since nothing is behind it."""
    sys_path = source.sys_path(name)
    if not sys_path:
        return None
    here = f"class/block/{name}"
    kind = transports.transport(source, name, sys_path)
    sectors = source.read(f"{here}/size")
    if sectors in ("0", None) and kind in _SLOTS:
        return None
    properties = source.properties(name)
    uuid = source.read(f"{here}/dm/uuid") or ""
    slaves, multipath = tuple(source.entries(f"{here}/slaves")), uuid.startswith("mpath-")
    if multipath:
        kind = _below(source, slaves) or kind
    size = _whole(sectors)
    facts = Facts(
        name=name,
        node=properties.get("DEVNAME") or "/dev/" + name.replace("!", "/"),
        transport=kind,
        sequence=_whole(source.read(f"{here}/diskseq") or properties.get("DISKSEQ")),
        multipath=multipath,
        rotational=transports.rotational(
            kind, source.read(f"{here}/queue/rotational"), properties.get("ID_ATA_ROTATION_RATE_RPM")
        ),
        size_bytes=size * SECTOR_BYTES if size is not None and size * SECTOR_BYTES <= SIZE_BYTES_MAX else None,
        block_bytes=_block(source.read(f"{here}/queue/logical_block_size")),
        physical_block_bytes=_block(source.read(f"{here}/queue/physical_block_size")),
        links=_links(properties),
        backing=clean(source.read(f"{here}/loop/backing_file") or source.read(f"{here}/dm/name") or ""),
        readonly=source.read(f"{here}/ro") == "1",
        removable=source.read(f"{here}/removable") == "1",
        zoned=(source.read(f"{here}/queue/zoned") or "none") not in ("none", "host-aware"),
        suspended=source.read(f"{here}/dm/suspended") == "1",
        partitions=tuple(_partitions(source, name)),
        holders=tuple(source.entries(f"{here}/holders")),
        below=_wholes(source, (*slaves, *_backing_device(source, name))),
        told_content=_told(properties),
        volume=ours.volume_shown(source, name, kind, usage),
    )
    facts = _with_place(source, facts, sys_path)
    facts = replace(facts, path_of=_path_of(source, facts, properties))
    facts = _with_marks(source, facts, properties)
    return _with_users(source, facts, usage)


_SLOTS = frozenset(
    {Transport.LOOP, Transport.NBD, Transport.RBD, Transport.DRBD, Transport.UBLK, Transport.MEMORY}
    | {Transport.OPTICAL, Transport.FLOPPY, Transport.MD, Transport.DM}
)
"""Where a size of 0 means that nothing is there: the kernel keeps such devices ready."""


def clean(text: str) -> str:
    """Text of a device fit to be stored and shown: no character that does not show (a stick may be called `ESC[2J`,
    or turn the line around), not long."""
    return "".join(each if each.isprintable() else "?" for each in " ".join(text.split()))[:TEXT_MAX]


def _with_place(source: Source, facts: Facts, sys_path: str) -> Facts:
    """PCI addresses and NUMA node of what the disk hangs on: for a multipath namespace, of every controller."""
    addresses = dict.fromkeys(_PCI.findall(sys_path)[-1:])
    for controller in transports.controllers(source, facts.name) if facts.name.startswith("nvme") else ():
        address = source.read(f"{controller}/address") or ""
        if _PCI.fullmatch(address):
            addresses[address] = None
    nodes = {_whole(source.read(f"bus/pci/devices/{address}/numa_node")) for address in addresses}
    return replace(facts, pci_addresses=tuple(addresses), numa_node=nodes.pop() if len(nodes) == 1 else None)


def _with_marks(source: Source, facts: Facts, properties: Mapping[str, str]) -> Facts:
    here = f"class/block/{facts.name}"
    if facts.name.startswith("nvme"):
        device = next(iter(transports.controllers(source, facts.name)), f"{here}/device")
        firmware = source.read(f"{device}/firmware_rev")
        serial, model = source.read(f"{device}/serial"), source.read(f"{device}/model")
        wwid = source.read(f"{here}/wwid")
    else:
        serial = _vpd_serial(source.read(f"{here}/device/vpd_pg80")) or source.read(f"{here}/serial")
        model, wwid = source.read(f"{here}/device/model"), source.read(f"{here}/device/wwid")
        # SCSI cuts the model of an ATA disk to 16 characters and its firmware to 4.
        firmware = properties.get("ID_REVISION") or source.read(f"{here}/device/rev")
        if facts.multipath:
            wwid = source.read(f"{here}/dm/uuid")
    told_serial = properties.get("ID_SCSI_SERIAL") or properties.get("ID_SERIAL_SHORT") or properties.get("ID_SERIAL")
    told_wwn = properties.get("ID_WWN_WITH_EXTENSION") or properties.get("ID_WWN") or ""
    marks = Marks(
        nguid=source.read(f"{here}/nguid") or "",
        eui=source.read(f"{here}/eui") or "",
        uuid=source.read(f"{here}/uuid") or "",
        wwid=wwid or (told_wwn if told_wwn.startswith(("nvme.", "eui.", "uuid.")) else ""),
        wwn=told_wwn,
        md_uuid=source.read(f"{here}/md/uuid") or properties.get("MD_UUID") or "",
        nsid=source.read(f"{here}/nsid") or properties.get("ID_NSID") or "",
        # A serial number of sysfs goes with the model of sysfs: what udev adds may be missing the next time.
        model=model or ("" if serial else properties.get("ID_MODEL")) or "",
        serial=serial or told_serial or "",
    )
    shown = model if facts.name.startswith("nvme") else properties.get("ID_MODEL") or model
    return replace(
        facts,
        identity="" if facts.path_of else identity(marks),
        wwid=clean(marks.wwid or marks.wwn),
        serial=clean(marks.serial),
        model=clean(shown or properties.get("ID_MODEL") or ""),
        firmware=clean(firmware or properties.get("ID_REVISION") or ""),
    )


def _with_users(source: Source, facts: Facts, usage: Usage) -> Facts:
    mounts, swap, loops = dict[str, None](), False, list[str]()
    for number in stack(source, facts):
        mounts.update(dict.fromkeys(usage.mounts.get(number, ())))
        swap = swap or number in usage.swaps
        loops.extend(usage.loops.get(number, ()))
    ordered = sorted(mounts, key=lambda target: (target.count("/"), target))
    boot = not SYSTEM_MOUNTS.isdisjoint(mounts)
    return replace(
        facts, mounts=tuple(map(clean, ordered[:MOUNTS_SHOWN])), boot=boot, swap=swap, loops=tuple(sorted(loops))
    )


def stack(source: Source, facts: Facts) -> Iterator[Number]:
    """The numbers of a disk, its partitions, and all that is built on any of them (volumes, encryption, RAID)."""
    pending = [facts.name, *(partition.name for partition in facts.partitions)]
    seen = set[str]()
    while pending and len(seen) < STACK_MAX:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        major, _, minor = (source.read(f"class/block/{name}/dev") or "").partition(":")
        if major.isdecimal() and minor.isdecimal():
            yield int(major), int(minor)
        pending.extend(source.entries(f"class/block/{name}/holders"))


def _path_of(source: Source, facts: Facts, properties: Mapping[str, str]) -> str:
    if transports.is_nvme_path(source, facts.name):
        head = re.sub(r"c\d+", "", facts.name, count=1)
        return head if source.sys_path(head) else "an NVMe namespace"
    for holder in facts.holders:
        if (source.read(f"class/block/{holder}/dm/uuid") or "").startswith("mpath-"):
            return holder
    return "a multipath map" if properties.get("DM_MULTIPATH_DEVICE_PATH") == "1" else ""


def _below(source: Source, slaves: tuple[str, ...]) -> Transport | None:
    """Transport of the paths of a map; one that is on a network decides."""
    kinds = [transports.transport(source, slave, source.sys_path(slave)) for slave in slaves]
    return next((kind for kind in kinds if kind in transports.NETWORK), next(iter(kinds), None))


def _backing_device(source: Source, name: str) -> list[str]:
    path = source.read(f"class/block/{name}/loop/backing_file") or ""
    return [path.removeprefix("/dev/").replace("/", "!")] if path.startswith("/dev/") else []


def _wholes(source: Source, names: Iterable[str]) -> tuple[str, ...]:
    """The devices themselves or, of partitions, the disks they are on."""
    found = set[str]()
    for name in names:
        sys_path = source.sys_path(name)
        is_partition = source.read(f"class/block/{name}/partition") is not None
        found.update(sys_path.rsplit("/", 2)[-2 if is_partition else -1 :][:1] if sys_path else ())
    return tuple(sorted(found))


def _partitions(source: Source, name: str) -> Iterator[Partition]:
    for entry in source.entries(f"class/block/{name}"):
        if entry.startswith(name) and source.read(f"class/block/{entry}/partition") is not None:
            yield Partition(entry, clean(source.properties(entry).get("ID_FS_TYPE", "")))


def _links(properties: Mapping[str, str]) -> tuple[str, ...]:
    links = {link for link in properties.get("DEVLINKS", "").split() if link.startswith(_STABLE_LINKS)}
    return tuple(sorted(clean(link) for link in links))[:LINKS_MAX]


def _told(properties: Mapping[str, str]) -> tuple[str, ...]:
    found = []
    if table := properties.get("ID_PART_TABLE_TYPE"):
        found.append(f"{clean(table)} partition table")
    if fs_type := properties.get("ID_FS_TYPE"):
        found.append(clean(fs_type))
    return tuple(found)


def _vpd_serial(page: str | None) -> str:
    match = _VPD_SERIAL.fullmatch(page or "")
    return match[1].strip(" \0") if match else ""


def _whole(text: str | None) -> int | None:
    """A whole number that is not negative and not absurd."""
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 20 else None


def _block(text: str | None) -> int | None:
    value = _whole(text)
    return value if value and SECTOR_BYTES <= value <= BLOCK_BYTES_MAX and value & (value - 1) == 0 else None
