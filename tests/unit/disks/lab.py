"""The disks of a virtual machine as udev and sysfs told them there (Linux 6.12, systemd 252): every kind at once."""

from __future__ import annotations

from agent.disks.source import NOT_LOOKED

from .fake_machine import Disk, FakeMachine, carries

SCSI = "devices/pci0000:00/0000:00:0c.0/virtio5/host6/target6:0:{0}/6:0:{0}:0/block/{1}"
ATA = "devices/pci0000:00/0000:00:1f.2/ata{0}/host{0}/target{0}:0:0/{0}:0:0:0/block/{1}"
USB = "devices/pci0000:00/0000:00:0d.0/usb1/1-1/1-1:1.0/host8/target8:0:0/8:0:0:0/block/sdh"
NVME = "devices/pci0000:00/0000:00:0{slot}.0/0000:0{bus}:00.0/nvme/nvme{ctrl}/nvme{ctrl}n{number}"


def lab() -> FakeMachine:
    machine = FakeMachine()
    machine.recording.files |= {f"bus/pci/devices/0000:0{bus}:00.0/numa_node": "-1" for bus in (5, 6)}
    for disk in (*_nvme(), *_scsi(), *_ata_and_usb(), *_virtual()):
        machine.plug(disk)
    machine.recording.mounts = {
        machine.recording.files["class/block/sda1/dev"]: ["/mnt/inuse"],
        machine.recording.files["class/block/vda/dev"]: ["/"],
    }
    return machine


def nvme(ctrl: int, number: int, serial: str, sectors: int) -> Disk:
    """A namespace of a local controller that has no identifiers of its own: the kernel makes up its wwid."""
    bus = 5 + ctrl
    model, address = "QEMU NVMe Ctrl", f"0000:0{bus}:00.0"
    wwid = f"nvme.1b36-{serial.encode().hex()}-{model.encode().hex()}-{number:08x}"
    links = (
        f"/dev/disk/by-id/nvme-QEMU_NVMe_Ctrl_{serial}_{number}",
        f"/dev/disk/by-path/pci-{address}-nvme-{number}",
        "/dev/disk/by-diskseq/3",
    )
    return Disk(
        f"nvme{ctrl}n{number}",
        NVME.format(slot=2 + ctrl, bus=bus, ctrl=ctrl, number=number),
        sectors,
        properties={
            "ID_SERIAL_SHORT": serial,
            "ID_MODEL": "QEMU NVMe Ctrl",
            "ID_WWN": wwid,
            "ID_NSID": str(number),
            "ID_PATH": f"pci-{address}-nvme-{number}",
            "DEVLINKS": " ".join(links),
        },
        files={
            "nsid": str(number),
            "wwid": wwid,
            "device/transport": "pcie",
            "device/address": address,
            "device/serial": serial,
            "device/model": model,
            "device/firmware_rev": "7.2.18",
        },
    )


def _nvme() -> list[Disk]:
    return [
        nvme(0, 1, "LABNVMEA0001", 4194304),
        nvme(0, 2, "LABNVMEA0001", 2097152),
        nvme(1, 1, "LABNVMEB0001", 4194304),
    ]


def scsi(index: int, model: str, sectors: int, **more: str) -> Disk:
    wwn = f"5000c5000000000{index + 1}"
    properties = {"ID_SERIAL_SHORT": wwn, "ID_MODEL": model, "ID_WWN": f"0x{wwn}", "ID_BUS": "scsi"}
    name = f"sd{'abcdefgh'[index]}"
    return Disk(name, SCSI.format(index, name), sectors, properties=properties | more)


def _scsi() -> list[Disk]:
    used = scsi(0, "INUSE-EXT4", 1048576, ID_PART_TABLE_TYPE="gpt", ID_SCSI_SERIAL="LABPART0001")
    used.partitions, used.look = {"sda1": "ext4"}, carries("a gpt partition table")
    volume = scsi(1, "LVM-PV", 524288, ID_FS_TYPE="LVM2_member", ID_FS_USAGE="raid")
    volume.holders, volume.look = ["dm-0"], carries("a LVM2_member volume manager or RAID member")
    readonly = scsi(2, "READONLY", 524288, ID_FS_TYPE="ext4")
    readonly.files["ro"], readonly.look = "1", carries("a ext4 filesystem")
    spinning = scsi(4, "SAS-HDD-10K", 2097152)
    spinning.rotational = 1
    return [used, volume, readonly, scsi(3, "TINY", 16384), spinning]


def _ata_and_usb() -> list[Disk]:
    ssd = {"ID_SERIAL_SHORT": "LABSSD0001", "ID_MODEL": "LAB_SATA_SSD", "ID_WWN": "0x5000c50015ea71aa", "ID_BUS": "ata"}
    hdd = {"ID_SERIAL_SHORT": "LABHDD0001", "ID_MODEL": "LAB_SATA_HDD", "ID_WWN": "0x5000c50015ea71bb", "ID_BUS": "ata"}
    usb = {"ID_SERIAL_SHORT": "LABUSB0001", "ID_MODEL": "QEMU_HARDDISK", "ID_BUS": "usb"}
    return [
        Disk("sdf", ATA.format(1, "sdf"), 4194304, properties=ssd | {"ID_ATA_ROTATION_RATE_RPM": "0"}),
        Disk("sdg", ATA.format(2, "sdg"), 8388608, 1, properties=hdd | {"ID_ATA_ROTATION_RATE_RPM": "7200"}),
        Disk("sdh", USB, 262144, 1, properties=usb, files={"removable": "1"}),
    ]


def _virtual() -> list[Disk]:
    root = {"ID_SERIAL": "labroot", "ID_FS_TYPE": "ext4", "ID_PATH": "pci-0000:00:01.0"}
    head = "devices/virtual/nvme-subsystem/nvme-subsys2/nvme2n1"
    path = "devices/virtual/nvme-fabrics/ctl/nvme2/nvme2c2n1"
    tcp = {"device/nvme2/transport": "tcp", "device/nvme2/address": "traddr=10.0.0.2,trsvcid=4420"}
    exported = Disk("nvme2n1", head, 524288, files=tcp | {"wwid": "uuid.7e0a5f5e-1d5c-4d5a-9b0e-3d3b1e8f4a11"})
    exported.folders["device"] = ["model", "nvme2", "nvme2n1", "subsysnqn"]
    hidden = {"hidden": "1", "device/transport": "tcp", "device/address": tcp["device/nvme2/address"]}
    return [
        Disk("vda", "devices/pci0000:00/0000:00:01.0/virtio0/block/vda", 8388608, 1, root, look=carries("a ext4")),
        Disk("loop0", "devices/virtual/block/loop0", 131072, 1, files={"loop/backing_file": "/root/loop.img"}),
        Disk("loop1", "devices/virtual/block/loop1", 0, 1),
        Disk(
            "dm-0",
            "devices/virtual/block/dm-0",
            131072,
            files={"dm/name": "labvg-lv0", "dm/uuid": "LVM-abc", "dm/suspended": "0"},
            slaves=["sdb"],
        ),
        Disk("ublkb1", "devices/virtual/block/ublkb1", 262144),
        exported,
        Disk("nvme2c2n1", path, 524288, properties={"DEVNAME": ""}, files=hidden, look=NOT_LOOKED),
    ]
