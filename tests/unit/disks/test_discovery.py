"""What is made of the disks of a whole machine, line by line, and of single ones that are built like none there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.disks.inventory import Inventory, Known
from agent.model import DiskPhase
from agent.store import documents

from .fake_machine import Disk, FakeMachine, carries
from .lab import lab, nvme, scsi

TABLE = """
nvme0n1    nvme      nvme False sn-labnvmea0001-*               yes
nvme0n2    nvme      nvme False sn-labnvmea0001-*               yes
nvme1n1    nvme      nvme False sn-labnvmeb0001-*               yes
sda        scsi      ssd  False wwn-5000c50000000001            size mounted partitions content
sdb        scsi      ssd  False wwn-5000c50000000002            size held content
sdc        scsi      ssd  False wwn-5000c50000000003            read-only size content
sdd        scsi      ssd  False wwn-5000c50000000004            size
sde        scsi      hdd  True  wwn-5000c50000000005            yes
sdf        sata      ssd  False wwn-5000c50015ea71aa            yes
sdg        sata      hdd  True  wwn-5000c50015ea71bb            yes
sdh        usb       ssd  None  sn-labusb0001-*                 removable size
vda        virtio    ssd  None  sn-labroot-*                    boot mounted content
loop0      loop      ssd  None  -                               kind size
dm-0       dm        ssd  False -                               kind size
ublkb1     ublk      ssd  False -                               kind size
nvme2n1    nvme-tcp  nvme False uuid-7e0a5f5e-1d5c-4d5a-9b0e-3d3b1e8f4a11  network size
nvme2c2n1  nvme-tcp  nvme False -                               path network size
"""


async def discovered(*disks: Disk, machine: FakeMachine | None = None) -> dict[str, Known]:
    machine = machine or FakeMachine()
    for disk in disks:
        machine.plug(disk)
    inventory = Inventory(machine, "n1")
    await inventory.scan()
    return dict(inventory.known)


def codes(known: Known) -> str:
    return " ".join(reason.code for reason in known.reasons) or "yes"


async def test_the_lab_line_by_line() -> None:
    known = await discovered(machine=lab())
    expected = {line.split()[0]: line.split(maxsplit=5) for line in TABLE.strip().splitlines()}
    assert set(known) == set(expected)  # an empty loop device is none
    for name, (_, transport, tier, rotational, identity, reasons) in expected.items():
        found = known[name]
        status = found.status
        assert (status.transport, status.tier, str(status.rotational)) == (transport, tier, rotational), name
        assert (found.identity or "-").startswith(identity.removesuffix("*")), name
        assert codes(found) == reasons, name
        assert status.eligible == (reasons == "yes")
        assert status.phase is (DiskPhase.AVAILABLE if status.eligible else DiskPhase.INELIGIBLE)
        assert len(status.reasons) == len(found.reasons)
        assert status.node == "n1"


async def test_facts_of_an_nvme_disk() -> None:
    status = (await discovered(machine=lab()))["nvme0n2"].status
    assert (status.model, status.serial, status.firmware) == ("QEMU NVMe Ctrl", "LABNVMEA0001", "7.2.18")
    assert (status.path, status.size_bytes) == ("/dev/nvme0n2", 2097152 * 512)
    assert (status.block_bytes, status.physical_block_bytes, status.numa_node) == (512, 512, None)
    assert status.pci_addresses == ("0000:05:00.0",)
    assert status.links == (
        "/dev/disk/by-id/nvme-QEMU_NVMe_Ctrl_LABNVMEA0001_2",
        "/dev/disk/by-path/pci-0000:05:00.0-nvme-2",
    )
    assert status.disk_sequence > 0


async def test_what_is_on_a_disk_is_told_with_its_users() -> None:
    known = await discovered(machine=lab())
    used = known["sda"].status
    assert used.partitions == ("sda1",)
    assert used.mount_points == ("/mnt/inuse",)
    assert used.signatures == ("a gpt partition table",)
    assert "has the partition sda1 (ext4)" in used.reasons
    assert "carries a gpt partition table" in used.reasons
    assert not any("wipefs" in reason for reason in used.reasons), "somebody uses it"
    assert known["sdb"].status.holders == ("dm-0",)
    assert known["nvme0n1"].status.signatures == ()


async def test_how_to_empty_a_disk_is_said_only_when_nobody_uses_it() -> None:
    machine = lab()
    machine.recording.mounts.clear()
    machine.recording.files["class/block/sda/size"] = str(8 << 21)
    inventory = Inventory(machine)
    await inventory.scan()
    assert any("wipefs --all /dev/sda" in reason for reason in inventory.known["sda"].status.reasons)
    for name in ("sdb", "sdc", "loop0"):  # held, read-only, no disk
        reasons = inventory.known[name].status.reasons
        assert not any("wipefs" in reason or "blkdiscard" in reason for reason in reasons), (name, reasons)


async def test_devices_of_our_volumes_are_named_and_nothing_is_said_against_them() -> None:
    machine, volume = lab(), "vol-" + "a" * 32
    machine.recording.files["class/block/nvme2n1/device/subsysnqn"] = f"nqn.2026-11.storage.quarry:vol:{volume}"
    machine.recording.files["class/block/loop0/loop/backing_file"] = (
        "/srv/d0.img.lvs/7e0a5f5e-1d5c-4d5a-9b0e-3d3b1e8f4a11.data"
    )
    machine.recording.volumes["ublkb1"] = volume
    for name in ("nvme2n1", "loop0", "ublkb1"):
        machine.recording.looks[name] = carries("a ext4")
    known = await discovered(machine=machine)
    for name in ("nvme2n1", "loop0", "ublkb1"):
        (reason,) = known[name].status.reasons
        assert codes(known[name]) == "ours"
        assert "in use on this machine" in reason
        assert (volume in reason) == (name != "loop0")
        assert name not in machine.looked, "nothing is read from it"


async def test_no_namespace_over_a_network_and_no_hidden_path_is_read_from() -> None:
    machine = lab()
    await discovered(machine=machine)
    assert {"nvme2n1", "nvme2c2n1", "ublkb1"}.isdisjoint(machine.looked)
    assert set(machine.looked.values()) == {1}


async def test_identity_is_that_of_the_disk_not_of_slot_name_or_node() -> None:
    here = await discovered(nvme(0, 1, "S1", 4194304))
    there = await discovered(nvme(1, 1, "S2", 4194304), replace(nvme(1, 1, "S1", 4194304), name="nvme7n1"))
    assert here["nvme0n1"].identity == there["nvme7n1"].identity
    assert here["nvme0n1"].disk is not None


async def test_a_disk_can_be_stored_and_read_back() -> None:
    for known in (await discovered(machine=lab())).values():
        if known.disk is not None:
            document = documents.encode(known.disk)
            assert documents.decode("Disk", known.identity, 0, document) == known.disk


async def test_nvme_identifiers_come_before_serial_numbers() -> None:
    disk = nvme(0, 1, "S1", 4194304)
    both = {"nguid": "36344730-5280-0066-0025-384100000003", "eui": "00 25 38 b1 11 22 33 44"}
    assert (await discovered(replace(disk, files=disk.files | both)))["nvme0n1"].identity == (
        "nguid-36344730528000660025384100000003"
    )
    eui = replace(disk, files=disk.files | {"eui": both["eui"], "wwid": "eui.002538b111223344"})
    assert (await discovered(eui))["nvme0n1"].identity == "eui-002538b111223344"


async def test_two_disks_with_one_identity_are_told_and_neither_is_taken() -> None:
    machine = FakeMachine()
    for index, name in enumerate(("vdb", "vdc", "vdd")):
        sys_path = f"devices/pci0000:00/0000:00:0{index}.0/virtio{index}/block/{name}"
        machine.plug(Disk(name, sys_path, files={"serial": "clone" if name != "vdd" else "other"}))
    inventory = Inventory(machine)
    await inventory.scan()
    one, two, other = (inventory.known[name] for name in ("vdb", "vdc", "vdd"))
    assert one.identity == two.identity != other.identity
    assert (codes(one), codes(two), codes(other)) == ("duplicate", "duplicate", "yes")
    assert (one.twins, two.twins) == (("vdc",), ("vdb",))
    assert "vdc" in one.status.reasons[0]
    assert one.disk is None
    machine.pull("vdc")
    changes = await inventory.look("vdc")
    assert {(change.kind, change.known.name) for change in changes} == {("removed", "vdc"), ("changed", "vdb")}
    assert codes(inventory.known["vdb"]) == "yes"
    assert machine.looked == {"vdb": 1, "vdc": 1, "vdd": 1}


async def test_two_namespaces_that_give_only_the_serial_number_of_their_controller() -> None:
    disks = [nvme(0, number, "S1", 4194304) for number in (1, 2)]
    for disk in disks:
        disk.files |= {"wwid": None, "nsid": None}
        del disk.properties["ID_WWN"], disk.properties["ID_NSID"]
    known = await discovered(*disks)
    assert {codes(each) for each in known.values()} == {"duplicate"}


@pytest.mark.parametrize("serial", ["", "0000000000", "0123456789ABCDEF", "None", "unknown"])
async def test_a_serial_number_that_says_nothing_is_none(serial: str) -> None:
    path = "devices/pci0000:00/0000:00:01.0/virtio0/block/vdb"
    known = await discovered(Disk("vdb", path, files={"serial": serial}))
    assert known["vdb"].identity == ""
    assert codes(known["vdb"]) == "no-identity"
    assert known["vdb"].disk is None


@pytest.mark.parametrize("wwn", ["0x0000000000000000", "0xffffffffffffffff", "0x12", "naa.5"])
async def test_a_wwn_that_says_nothing_is_passed_over(wwn: str) -> None:
    disk = scsi(0, "ODD", 4194304, ID_WWN=wwn, ID_SERIAL_SHORT="REAL1")
    assert (await discovered(disk))["sda"].identity.startswith("sn-real1-")


async def test_identity_is_the_same_with_and_without_the_database_of_udev() -> None:
    disk = scsi(0, "VENDOR_MODEL", 4194304, ID_WWN_WITH_EXTENSION="0x6001405aaaaaaaaaaaaaaaaaaaaaaaa1")
    disk.files |= {"device/wwid": "naa.6001405aaaaaaaaaaaaaaaaaaaaaaaa1", "device/model": "VENDOR MODEL"}
    told = (await discovered(disk))["sda"]
    silent = (await discovered(replace(disk, properties={})))["sda"]
    assert told.identity == silent.identity == "wwn-6001405aaaaaaaaaaaaaaaaaaaaaaaa1"
    disk.files["device/wwid"], disk.properties = None, {"ID_SCSI_SERIAL": "AB 12", "ID_MODEL": "VENDOR_MODEL"}
    silent_disk = replace(disk, properties={}, files=disk.files | {"device/vpd_pg80": "\0\\x80\0\x08AB 12   "})
    assert (await discovered(disk))["sda"].identity == (await discovered(silent_disk))["sda"].identity != ""


async def test_a_model_that_only_udev_tells_is_no_part_of_the_identity_by_a_serial_number_of_sysfs() -> None:
    disk = Disk("vdb", "devices/pci0/virtio1/block/vdb", files={"serial": "S1"})
    told = replace(disk, properties={"ID_MODEL": "told"})
    assert (await discovered(disk))["vdb"].identity == (await discovered(told))["vdb"].identity


def multipath() -> FakeMachine:
    machine = FakeMachine()
    for index in range(2):
        name = f"sd{'ab'[index]}"
        place = f"devices/pci0/0000:03:00.0/host{index}/port-{index}:0/end_device-{index}:0/target{index}:0:0/block"
        machine.plug(
            Disk(
                name,
                f"{place}/{name}",
                rotational=1,
                holders=["dm-3"],
                files={"device/wwid": "naa.5000c500aaaaaaaa"},
            )
        )
    files = {"dm/uuid": "mpath-35000c500aaaaaaaa", "dm/name": "mpatha"}
    machine.plug(Disk("dm-3", "devices/virtual/block/dm-3", rotational=1, files=files, slaves=["sda", "sdb"]))
    return machine


async def test_of_a_multipath_disk_the_map_is_the_disk_and_its_paths_are_not() -> None:
    known = await discovered(machine=multipath())
    assert codes(known["dm-3"]) == "yes"
    assert known["dm-3"].identity == "wwn-5000c500aaaaaaaa"
    assert (known["dm-3"].status.transport, known["dm-3"].status.tier) == ("sas", "hdd")
    assert (codes(known["sda"]), codes(known["sdb"])) == ("path", "path")
    assert "paths to dm-3" in known["sda"].status.reasons[0]


async def test_a_multipath_namespace_of_local_controllers_is_a_local_disk() -> None:
    head = Disk(
        "nvme0n1",
        "devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1",
        folders={"device": ["nvme0", "nvme1", "nvme0n1"]},
        files={"nguid": "36344730-5280-0066-0025-384100000003"},
    )
    for number in (0, 1):
        head.files[f"device/nvme{number}/transport"] = "pcie"
        head.files[f"device/nvme{number}/address"] = f"0000:0{number}:00.0"
        head.files[f"device/nvme{number}/serial"] = "DUAL1"
    known = (await discovered(head))["nvme0n1"]
    assert codes(known) == "yes"
    assert known.status.pci_addresses == ("0000:00:00.0", "0000:01:00.0")
    assert known.status.serial == "DUAL1"
    head.files["device/nvme1/transport"] = "rdma"
    assert codes((await discovered(head))["nvme0n1"]) == "network"
    head.folders = {}
    assert codes((await discovered(head))["nvme0n1"]) == "network"


async def test_users_of_what_is_built_on_a_disk_are_users_of_the_disk() -> None:
    machine = FakeMachine()
    machine.plug(replace(scsi(0, "LVM", 4194304), partitions={"sda1": "LVM2_member", "sda2": ""}))
    machine.plug(Disk("dm-0", "devices/virtual/block/dm-0", holders=["dm-1"], slaves=["sda1"]))
    machine.plug(Disk("dm-1", "devices/virtual/block/dm-1", slaves=["dm-0"]))
    machine.set_folder("class/block/sda1/holders", ["dm-0"])
    number = machine.recording.files["class/block/dm-1/dev"]
    machine.recording.mounts, machine.recording.swaps = {number: ["/boot", "/srv"]}, [number]
    machine.recording.loops = {machine.recording.files["class/block/sda2/dev"]: ["loop3"]}
    known = await discovered(machine=machine)
    assert codes(known["sda"]) == "boot mounted swap loop partitions"
    assert known["sda"].status.mount_points == ("/boot", "/srv")


@pytest.mark.parametrize(
    ("disk", "expected"),
    [
        (Disk("sda", "devices/platform/host3/session1/target3:0:0/3:0:0:1/block/sda"), "network"),
        (Disk("sda", "devices/pci0/host3/rport-3:0-1/target3:0:0/block/sda"), "network"),
        (Disk("nbd0", "devices/virtual/block/nbd0"), "network"),
        (Disk("zram0", "devices/virtual/block/zram0"), "kind"),
        (Disk("weird0", "devices/virtual/block/weird0"), "kind"),
        (Disk("sda", "devices/pci0/ata1/host1/target1:0:0/block/sda", files={"queue/zoned": "host-managed"}), "zoned"),
        (Disk("sda", "devices/pci0/ata1/host1/target1:0:0/block/sda", files={"removable": "1"}), "removable"),
        (
            Disk("sda", "devices/pci0/ata1/host1/target1:0:0/block/sda", files={"queue/logical_block_size": "16384"}),
            "block-size",
        ),
        (Disk("md0", "devices/virtual/block/md0", files={"md/uuid": "3f1a3a0e-1111-2222-3333-444455556666"}), "yes"),
    ],
)
async def test_kinds(disk: Disk, expected: str) -> None:
    disk.files.setdefault("device/wwid", None if disk.name in ("md0", "weird0") else "naa.5000c500aaaaaaaa")
    assert codes((await discovered(disk))[disk.name]) == expected


async def test_a_suspended_volume_is_not_read_from() -> None:
    machine = FakeMachine()
    machine.plug(Disk("dm-0", "devices/virtual/block/dm-0", files={"dm/suspended": "1"}))
    assert "unreadable" in codes((await discovered(machine=machine))["dm-0"])
    assert not machine.looked


async def test_every_reason_is_given_at_once() -> None:
    disk = scsi(0, "ALL", 16384, ID_WWN="")
    disk.files |= {"ro": "1", "removable": "1", "queue/zoned": "host-managed", "queue/logical_block_size": "0"}
    disk.properties, disk.partitions, disk.look = {}, {"sda1": "xfs"}, carries("a dos partition table")
    disk.holders = ["md0"]
    assert codes((await discovered(disk))["sda"]) == (
        "removable no-identity read-only zoned size block-size held partitions content"
    )
