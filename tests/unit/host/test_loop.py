"""Loop devices: recorded listings, and real ones on files in a temporary directory."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errors import FailedPrecondition, NotFound
from agent.host import device as devices
from agent.host import loop

MIB = 1 << 20

RECORDED = """{"loopdevices": [
 {"name": "/dev/loop0", "back-file": "/tmp/lt/f (deleted)", "back-ino": 9977950, "back-maj:min": "     254:0  ",
  "offset": 0, "sizelimit": 0},
 {"name": "/dev/loop1", "back-file": "/tmp/a b", "back-ino": 7, "back-maj:min": "254:0", "offset": 4096,
  "sizelimit": 0}]}"""


def test_recorded_listing() -> None:
    first, second = loop.parse(RECORDED)
    assert (first.path, first.file, first.deleted) == (Path("/dev/loop0"), Path("/tmp/lt/f"), True)
    assert first.identity == (254, 0, 9977950)
    assert (second.file, second.whole, second.deleted) == (Path("/tmp/a b"), False, False)
    assert loop.parse("") == []


def losetup(*arguments: str) -> str:
    return subprocess.run(["losetup", *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def files(tmp_path: Path) -> Iterator[list[Path]]:
    if os.geteuid() != 0 or shutil.which("losetup") is None or not Path("/dev/loop-control").exists():
        pytest.skip("needs root, losetup and loop devices")
    made = [Path(os.path.realpath(tmp_path)) / f"file {number}" for number in range(3)]
    for file in made:
        with file.open("wb") as opened:
            opened.truncate(8 * MIB)
    try:
        yield made
    finally:
        for found in asyncio.run(loop.devices()):
            if found.file.is_relative_to(os.path.realpath(tmp_path)):
                subprocess.run(["losetup", "-d", str(found.path)], check=False)


@pytest.mark.root
async def test_attach_find_detach_are_repeatable(files: list[Path]) -> None:
    device = await loop.attach(files[0])
    assert await loop.attach(files[0]) == device
    assert await loop.find(files[0]) == device
    assert devices.size_bytes(device) == 8 * MIB
    await loop.detach(device)
    await loop.detach(device)
    assert await loop.find(files[0]) is None


@pytest.mark.root
async def test_many_at_once_get_one_device_per_file(files: list[Path]) -> None:
    found = await asyncio.gather(*(loop.attach(file) for file in files * 4))
    assert len(set(found)) == 3
    assert found[:3] * 4 == found


@pytest.mark.root
async def test_found_by_inode_not_by_name(files: list[Path]) -> None:
    device = await loop.attach(files[0])
    renamed = files[0].rename(files[0].with_name("renamed"))
    assert await loop.find(renamed) == device
    files[1].rename(files[0])
    assert await loop.find(files[0]) is None
    other = await loop.attach(files[0])
    assert other != device


@pytest.mark.root
async def test_leftovers_of_deleted_and_replaced_files(files: list[Path]) -> None:
    device = await loop.attach(files[0])
    assert await loop.find_leftovers(files[0]) == []
    files[0].unlink()
    assert await loop.find(files[0]) is None
    assert await loop.find_leftovers(files[0]) == [device]
    files[1].rename(files[0])
    assert await loop.find_leftovers(files[0]) == [device]
    await loop.detach(device)
    assert await loop.find_leftovers(files[0]) == []


@pytest.mark.root
async def test_a_device_showing_part_of_the_file_does_not_count(files: list[Path]) -> None:
    partial = losetup("-f", "--show", "-o", "4096", str(files[0]))
    assert await loop.find(files[0]) is None
    losetup("-d", partial)


@pytest.mark.root
async def test_rescan_sees_the_new_size(files: list[Path]) -> None:
    device = await loop.attach(files[0])
    os.truncate(files[0], 16 * MIB)
    await loop.rescan(device)
    assert devices.size_bytes(device) == 16 * MIB


@pytest.mark.root
async def test_detach_waits_for_the_last_user(files: list[Path]) -> None:
    device = await loop.attach(files[0])
    holder = os.open(device, os.O_RDONLY)
    task = asyncio.create_task(loop.detach(device))
    done, _ = await asyncio.wait([task], timeout=0.3)
    assert not done
    os.close(holder)
    await asyncio.wait_for(task, 5)
    assert await loop.find(files[0]) is None


@pytest.mark.root
async def test_what_cannot_be_attached(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await loop.attach(tmp_path / "absent")
    with pytest.raises(FailedPrecondition):
        await loop.attach(tmp_path)
