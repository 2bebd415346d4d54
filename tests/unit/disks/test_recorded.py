"""What a real machine told (`quarry disks record` in the lab: Linux 6.12, systemd 252) is understood anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.disks.inventory import Inventory
from agent.disks.recording import Recorded, Recorder, dump, load

RECORDING = Path(__file__).parent / "recordings/lab.json"

# name: transport, tier, MiB, identity, codes of the reasons why not
TABLE: dict[str, tuple[str, str, int, str, list[str]]] = {
    "nvme0n1": ("nvme", "nvme", 2048, "sn-labnvmea0001-f0dcb61de4a1", []),
    "nvme0n2": ("nvme", "nvme", 1024, "sn-labnvmea0001-50348918742b", ["content"]),
    "nvme1n1": ("nvme", "nvme", 2048, "sn-labnvmeb0001-b08943ed49e0", ["content"]),
    "sda": ("sata", "ssd", 2048, "wwn-5000c50015ea71aa", []),
    "sdb": ("sata", "hdd", 4096, "wwn-5000c50015ea71bb", []),
    "sdc": ("scsi", "ssd", 8, "wwn-5000c50000000004", ["size"]),
    "sdd": ("scsi", "ssd", 512, "wwn-5000c50000000001", ["size", "mounted", "partitions", "content"]),
    "sde": ("scsi", "ssd", 256, "wwn-5000c50000000002", ["size", "held", "content"]),
    "sdf": ("scsi", "ssd", 1280, "wwn-5000c50000000003", ["read-only"]),
    "sdg": ("usb", "ssd", 1536, "sn-labusb0001-e45aac47691b", ["removable"]),
    "dm-0": ("dm", "ssd", 64, "", ["kind", "size"]),
    "vda": ("virtio", "ssd", 8192, "", ["no-identity", "boot", "mounted", "content"]),
}


@pytest.fixture
async def inventory() -> Inventory:
    inventory = Inventory(Recorded(load(RECORDING.read_bytes())))
    await inventory.scan()
    return inventory


def test_the_recording_has_these_disks(inventory: Inventory) -> None:
    assert set(inventory.known) == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_each_disk(inventory: Inventory, name: str) -> None:
    known = inventory.known[name]
    status = known.status
    codes = [reason.code.value for reason in known.reasons]
    seen = (status.transport, status.tier.value, status.size_bytes >> 20, known.identity, codes)
    assert seen == TABLE[name], status.reasons
    assert status.eligible is (not codes)


def test_namespaces_of_one_controller_share_its_place_and_serial_number(inventory: Inventory) -> None:
    first, second = (inventory.known[name].status for name in ("nvme0n1", "nvme0n2"))
    assert (first.pci_addresses, first.serial) == (second.pci_addresses, second.serial)
    assert len(first.pci_addresses) == 1
    assert inventory.known["nvme1n1"].status.pci_addresses != first.pci_addresses


async def test_a_recording_of_the_recording_is_the_same() -> None:
    document = RECORDING.read_bytes()
    recorder = Recorder(Recorded(load(document)))
    await Inventory(recorder).scan()
    again = load(dump(recorder.recording))
    assert again.looks == load(document).looks
    assert again.properties == load(document).properties
