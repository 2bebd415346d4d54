"""What is written and discarded through a loop device on a data file is counted by the pool."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.embedded.lvs.lvol import LvolBdev

from .conftest import MIB, Machine

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/loop-control").exists(), reason="needs root, loop devices"),
]


@pytest.fixture(params=["here", "xfs"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Of the filesystem that tests are run on, and of one that shares blocks between copies."""
    if request.param == "here":
        yield tmp_path
        return
    if shutil.which("mkfs.xfs") is None:
        pytest.skip("mkfs.xfs not found: the filesystem that shares blocks")
    image, mounted = tmp_path / "xfs.img", tmp_path / "xfs"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(400 * MIB)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mounted)], check=True)
    yield mounted
    subprocess.run(["umount", "--lazy", str(mounted)], check=True)  # the parts of a target keep files open


@pytest.fixture
async def machine(folder: Path) -> AsyncIterator[Machine]:
    made = Machine(folder)
    yield made
    await made.stores.close()


@contextmanager
def loop_on(machine: Machine, name: str) -> Iterator[str]:
    bdev = machine.bdev(name)
    assert isinstance(bdev, LvolBdev)
    found = subprocess.run(["losetup", "-f", "--show", str(bdev.path)], check=True, capture_output=True, text=True)
    device = found.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def write(device: str, at_mib: int, count: int) -> None:
    done = ["dd", "if=/dev/urandom", f"of={device}", "bs=1M", f"count={count}", f"seek={at_mib}", "conv=fsync,notrunc"]
    subprocess.run(done, check=True, capture_output=True)
    subprocess.run(["sync", "-f", device], check=True)
    os.sync()  # blocks that are shared are given places of their own as they are written back


def discard(device: str, at_mib: int, count: int) -> None:
    subprocess.run(["blkdiscard", "-o", str(at_mib * MIB), "-l", str(count * MIB), device], check=True)


async def allocated(machine: Machine, name: str) -> int:
    count: int = (await machine.lvols())[name]["num_allocated_clusters"]
    return count


async def create(machine: Machine, size_mib: int = 32) -> None:
    await machine.call("bdev_lvol_create", lvol_name="v", size_in_mib=size_mib, lvs_name="pool", thin_provision=True)


async def test_writes_and_discards_through_a_loop_device_are_counted(machine: Machine) -> None:
    await machine.pool()
    free = await machine.free_clusters()
    await create(machine)
    with loop_on(machine, "pool/v") as device:
        write(device, 4, 10)
        assert await machine.free_clusters() == free - 10
        discard(device, 8, 2)
        assert await machine.free_clusters() == free - 8
        write(device, 20, 1)
    assert await machine.free_clusters() == free - 9, "what was written last, before it was detached"
    await machine.restart()
    await machine.reopen()
    assert await machine.free_clusters() == free - 9


async def test_a_pool_may_be_written_beyond_its_end_and_says_so(machine: Machine) -> None:
    await machine.pool(size_bytes=32 * MIB)
    free = await machine.free_clusters()
    await create(machine, 64)
    with loop_on(machine, "pool/v") as device:
        write(device, 0, free + 4)
        assert await machine.free_clusters() == 0
        assert await allocated(machine, "v") == free + 4


async def test_after_a_snapshot_what_is_written_is_the_volumes_own(machine: Machine, folder: Path) -> None:
    await machine.pool()
    free = await machine.free_clusters()
    await create(machine)
    with loop_on(machine, "pool/v") as device:
        write(device, 0, 10)
        await machine.call("bdev_lvol_snapshot", lvol_name="pool/v", snapshot_name="s")
        assert await allocated(machine, "s") == 10, "what was written before it is the snapshot's"
        shares = folder.name == "xfs"
        before = await allocated(machine, "v")
        assert before == (0 if shares else 10), "a copy takes its room where blocks cannot be shared"
        write(device, 2, 3)
        write(device, 20, 2)
        assert await allocated(machine, "v") == (5 if shares else 12)
        await machine.call("bdev_lvol_delete", name="pool/s")
        assert await machine.free_clusters() == free - 12
