"""The label of an SPDK pool, as a program that may meet anything on a device reads it."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from agent.errors import FailedPrecondition
from agent.host import blkid
from agent.host.blkid import Label

MIB = 1 << 20
PAGE = 4096
NAME, UUID = "quarry-wwn-5000c500a1b2c3d4", "59c2875f-111b-4dcb-b1c9-86911f5fd5ee"
BLOB = 1 << 32  # the first one: index 0


def attribute(name: bytes, value: bytes) -> bytes:
    return struct.pack("<BIHH", 2, 4 + len(name) + len(value), len(name), len(value)) + name + value


def super_block(blob: int = BLOB, md_start: int = 4, md_len: int = 256, page: int = PAGE) -> bytes:
    head = b"SPDKBLOB" + struct.pack("<IIIQI", 3, PAGE, 1, blob, MIB)
    head += struct.pack("<6I", 1, 1, 2, 1, md_start, md_len) + b"LVOLSTORE".ljust(16, b"\0")
    return (head + struct.pack("<IIQII", 3, 1, 64 * MIB, PAGE, page)).ljust(PAGE, b"\0")


def super_page(name: bytes = NAME.encode() + b"\0", uuid: bytes = UUID.encode() + b"\0") -> bytes:
    head = struct.pack("<QII", BLOB, 0, 0) + struct.pack("<BIQQQ", 3, 24, 0, 0, 0)
    return (head + attribute(b"uuid", uuid) + attribute(b"name", name)).ljust(PAGE, b"\0")


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "device"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
    return path


def put(device: Path, offset: int, data: bytes) -> None:
    with device.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def bytes_of(device: Path) -> bytes:
    return device.read_bytes()


async def test_a_pool_is_known_by_its_label_and_taken_off_by_it_alone(device: Path) -> None:
    put(device, 0, super_block())
    put(device, 4 * PAGE, super_page())
    put(device, 259 * PAGE, b"\x01")
    found = await blkid.probe(device)
    assert (found.blank, found.label, found.only_label) == (False, Label(NAME, UUID), True)
    assert found.description == f"the SPDK pool {NAME!r}"
    before = bytes_of(device)
    with pytest.raises(FailedPrecondition):
        await blkid.remove_pool(device, Label(NAME, UUID.replace("5", "6")))
    assert bytes_of(device) == before
    await blkid.remove_pool(device, Label(NAME, UUID))
    assert (await blkid.probe(device)).blank
    with pytest.raises(FailedPrecondition):
        await blkid.remove_pool(device, Label(NAME, UUID))


async def test_half_a_pool_has_no_name(device: Path) -> None:
    put(device, 0, super_block(blob=(1 << 64) - 1))
    assert (await blkid.probe(device)).label == Label("")


@pytest.mark.parametrize("how", ["page size", "place", "length", "attributes", "noise"])
async def test_a_label_that_cannot_be_is_a_label_without_a_name(device: Path, how: str) -> None:
    chance = random.Random(how)
    block, page = super_block(), super_page()
    match how:
        case "page size":
            block = super_block(page=0xFFFFFFFF)
        case "place":
            block = super_block(md_start=0xFFFFFFFF)
        case "length":
            block = super_block(md_len=0xFFFFFFFF)
        case "attributes":
            page = page[:16] + b"\x02" + b"\xff" * (PAGE - 17)
        case "noise":
            page = page[:16] + chance.randbytes(PAGE - 16)
    put(device, 0, block)
    put(device, 4 * PAGE, page)
    found = await blkid.probe(device)
    assert found.label is not None
    assert (found.label.name, found.blank) == ("", False)


async def test_a_name_is_text_of_bounded_length(device: Path) -> None:
    put(device, 0, super_block())
    put(device, 4 * PAGE, super_page(name=b"\x1b[2J\xff" + b"n" * 1000))
    found = await blkid.probe(device)
    assert found.label is not None
    assert len(found.label.name) == 64
    assert found.description.isprintable()
