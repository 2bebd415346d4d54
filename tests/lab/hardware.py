"""The disks of the lab's machine, one of every kind, and the IOMMU they are behind. Their content is made inside."""

from __future__ import annotations

from pathlib import Path

SIZES_MIB = {
    "nvme-a1": 2048,
    "nvme-a2": 1024,
    "nvme-b1": 2048,
    "ssd": 2048,
    "hdd": 4096,
    "ext4": 512,
    "lvm": 256,
    "readonly": 1280,
    "tiny": 8,
    "usb": 1536,
}

HOT_MIB = {"hot": 1536, "fixed": 1536}
"""Of disks that are in no slot at the start; the tests plug them in (tests/lab/inside/slots.py)."""

VOLATILE_MIB = {name: SIZES_MIB[name] for name in ("nvme-a1", "nvme-a2", "nvme-b1", "ssd", "hdd")} | HOT_MIB
"""Those that lose at a power cut what was not flushed (tests/lab/volatile.py); the others lose nothing."""

MEDIA = "media.sock"
"""Where those are served, in the machine's folder."""

IOMMU = ("-device", "intel-iommu,caching-mode=on,aw-bits=48")
"""39 bits, the default, are too few for the addresses that SPDK maps."""

KERNEL_LINE = "intel_iommu=on"


def argv(folder: Path) -> list[str]:
    """QEMU's arguments; the disks are sparse files in `folder`, the volatile ones served at MEDIA."""
    found = list(IOMMU)
    for name in VOLATILE_MIB:
        # Not -drive: those of HOT_MIB would be gone with the first device that had them.
        server = f"server.type=unix,server.path={folder / MEDIA},export={name}"
        found += ["-blockdev", f"driver=nbd,node-name={name},discard=unmap,{server}"]
    for name, size in SIZES_MIB.items():
        if name in VOLATILE_MIB:
            continue
        file = folder / f"{name}.disk"
        with file.open("wb") as opened:
            opened.truncate(size << 20)
        readonly = ",read-only=on" if name == "readonly" else ""
        found += ["-drive", f"id={name},file={file},format=raw,if=none,cache=unsafe,discard=unmap{readonly}"]
    return [*found, *_nvme(), *_slots(), *_sata(), *_scsi(), *_usb()]


def _nvme() -> list[str]:
    """Each controller behind a port of its own, as in a slot: in an IOMMU group of its own, too."""
    ports = ["pcie-root-port,id=slot-a,chassis=1,slot=1", "pcie-root-port,id=slot-b,chassis=2,slot=2"]
    devices = [
        *ports,
        "nvme,id=a,serial=LABNVMEA0001,bus=slot-a",
        "nvme-ns,drive=nvme-a1,bus=a,nsid=1",
        "nvme-ns,drive=nvme-a2,bus=a,nsid=2",
        "nvme,id=b,serial=LABNVMEB0001,bus=slot-b",
        "nvme-ns,drive=nvme-b1,bus=b,nsid=1",
    ]
    return [word for device in devices for word in ("-device", device)]


def _slots() -> list[str]:
    """Two free ones, for a medium that has no controller."""
    slots = ["pcie-root-port,id=slot-c,chassis=3,slot=3", "pcie-root-port,id=slot-d,chassis=4,slot=4"]
    return [word for slot in slots for word in ("-device", slot)]


def _sata() -> list[str]:
    ssd = "ide-hd,drive=ssd,bus=ide.0,rotation_rate=1,serial=LABSSD0001,model=LAB_SATA_SSD,wwn=0x5000c50015ea71aa"
    hdd = "ide-hd,drive=hdd,bus=ide.1,rotation_rate=7200,serial=LABHDD0001,model=LAB_SATA_HDD,wwn=0x5000c50015ea71bb"
    return ["-device", ssd, "-device", hdd]


def _scsi() -> list[str]:
    found = ["-device", "virtio-scsi-pci,id=scsi"]
    for number, name in enumerate(("ext4", "lvm", "readonly", "tiny"), 1):
        place = f"scsi-hd,drive={name},bus=scsi.0,channel=0,scsi-id=0,lun={number}"
        who = f"vendor=LAB,product={name.upper()},serial=LAB{number:04},wwn=0x5000c5000000000{number}"
        found += ["-device", f"{place},{who},rotation_rate=1"]
    return found


def _usb() -> list[str]:
    return ["-device", "qemu-xhci,id=usb", "-device", "usb-storage,bus=usb.0,drive=usb,serial=LABUSB0001,removable=on"]
