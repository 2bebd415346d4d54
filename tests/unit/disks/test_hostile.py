"""Devices that lie, talk nonsense or vanish: none of them keeps the others from being found."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import ClassVar

import pytest

from agent.disks.inventory import Inventory
from agent.disks.machine import readable
from agent.disks.source import Look
from agent.store import documents

from .fake_machine import Disk, FakeMachine
from .lab import scsi
from .test_discovery import codes, discovered

GOOD = scsi(7, "GOOD", 4194304)
SATA = "devices/pci0000:00/0000:00:1f.2/ata1/host1/target1:0:0/1:0:0:0/block/sda"


ABSURD = ["", "-1", "x", "1e9", "\u0663\u0663", "12 34", "\\xff", str((1 << 60) // 512 + 1), "1234567890123456789"]


@pytest.mark.parametrize("size", [*ABSURD, "18446744073709551615", "9" * 40])
async def test_absurd_sizes(size: str) -> None:
    known = await discovered(Disk("sda", SATA, size, files={"device/wwid": "naa.5000c500aaaaaaaa"}), GOOD)
    assert codes(known["sda"]) == "size"
    assert known["sda"].status.size_bytes == 0
    assert known["sda"].disk is not None
    documents.encode(known["sda"].disk)
    assert codes(known["sdh"]) == "yes"


async def test_a_disk_that_tells_nothing_at_all() -> None:
    machine = FakeMachine()
    machine.recording.folders["block"] = ["sda"]
    machine.recording.sys_paths["sda"] = SATA
    known = await discovered(GOOD, machine=machine)
    assert codes(known["sda"]) == "no-identity size block-size"
    assert known["sda"].status.path == "/dev/sda"
    assert codes(known["sdh"]) == "yes"


async def test_names_that_would_drive_the_terminal_or_break_the_store() -> None:
    evil = "\x1b[2J\x9b31m\u2028 [red]x[/red] \udcff" + "A" * 5000
    disk = Disk("sda", SATA, properties={"ID_MODEL": evil, "ID_REVISION": evil, "DEVLINKS": f"/dev/disk/by-id/{evil}"})
    disk.files = {"device/vpd_pg80": "\0\\x80\0\x08" + evil, "device/model": evil}
    disk.look = Look(problem=evil)
    known = (await discovered(disk, GOOD))["sda"]
    status = known.status
    assert known.disk is not None
    documents.encode(known.disk)
    for text in (status.model, status.serial, status.firmware, *status.links, *status.reasons):
        assert text.isprintable()
        assert len(text) <= 256
    assert known.identity.isascii()
    assert len(known.identity) < 56  # `quarry-<identity>` is the name of a pool, 63 characters at most


async def test_an_identity_of_bytes_that_are_no_text_is_still_exact() -> None:
    """sysfs is read with such bytes spelled out, so two of them stay two."""
    disks = [Disk(f"vd{x}", f"devices/pci0/virtio{x}/block/vd{x}", files={"serial": f"A\\x{x}"}) for x in ("f1", "f2")]
    for disk in disks:
        disk.sys_path = disk.sys_path.replace("virtiof", "virtio")
    one, two = (await discovered(*disks)).values()
    assert codes(one) == codes(two) == "yes"
    assert one.identity != two.identity


def test_properties_that_are_not_utf8_are_left_out() -> None:
    class Properties(Mapping[str, str]):
        """As pyudev's: raises at each access."""

        _raw: ClassVar = {"ID_MODEL": b"fine", "ID_SERIAL": b"\xff\xfe", "OTHER": b"x"}

        def __getitem__(self, name: str) -> str:
            return self._raw[name].decode()

        def __iter__(self) -> Iterator[str]:
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "a name that is no UTF-8 ends every list of them")

        def __len__(self) -> int:
            return len(self._raw)

    assert readable(Properties()) == {"ID_MODEL": "fine"}


async def test_a_disk_that_vanishes_while_it_is_looked_at() -> None:
    machine = FakeMachine()
    machine.on_look = lambda name: machine.pull(name) if name == "sda" else None
    known = await discovered(replace(GOOD, name="sda"), GOOD, machine=machine)
    assert list(known) == ["sdh"]


async def test_a_disk_replaced_by_another_of_the_same_name_while_it_is_looked_at() -> None:
    machine = FakeMachine()
    other = scsi(1, "OTHER", 8388608)
    other.name = "sda"

    def swap(name: str) -> None:
        if machine.looked[name] == 1:
            machine.pull(name)
            machine.plug(other)

    machine.on_look = swap
    known = await discovered(scsi(0, "FIRST", 4194304), machine=machine)
    assert known["sda"].status.model == "OTHER"
    assert machine.looked["sda"] == 2


async def test_a_name_that_never_comes_to_rest_is_given_up_unread() -> None:
    machine = FakeMachine()

    def swap(name: str) -> None:
        machine.pull(name)
        machine.plug(scsi(0, "NEXT", 4194304))

    machine.on_look = swap
    known = await discovered(scsi(0, "FIRST", 4194304), machine=machine)
    assert codes(known["sda"]) == "unreadable"
    assert machine.looked["sda"] == 3


async def test_a_name_used_again_is_another_disk_even_with_the_same_identity() -> None:
    machine = FakeMachine()
    machine.plug(scsi(0, "SAME", 4194304))
    inventory = Inventory(machine)
    await inventory.scan()
    machine.pull("sda")
    machine.plug(scsi(0, "SAME", 4194304))
    changes = await inventory.scan()
    assert [change.kind for change in changes] == ["removed", "added"]
    before, after = (change.known for change in changes)
    assert before.identity == after.identity
    assert before.status.disk_sequence < after.status.disk_sequence
    assert machine.looked["sda"] == 2


async def test_disks_that_do_not_answer_leave_room_for_the_others() -> None:
    machine = FakeMachine()
    for index in range(8):
        machine.plug(scsi(index, "M", 4194304))
    machine.stuck = {f"sd{letter}": asyncio.Event() for letter in "abc"}
    inventory = Inventory(machine)
    scan = asyncio.create_task(inventory.scan())
    async with asyncio.timeout(5):
        while len(inventory.known) < 5:  # noqa: ASYNC110 - the inventory tells nobody
            await asyncio.sleep(0.005)
        assert set(inventory.known) == {"sdd", "sde", "sdf", "sdg", "sdh"}
        for stuck in machine.stuck.values():
            stuck.set()
        await scan
    assert len(inventory.known) == 8
