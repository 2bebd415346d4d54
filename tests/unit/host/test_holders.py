"""Who has a device is named, with the way to end it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.host import holders
from tests.disks import loops
from tests.disks.loops import LoopDisk

pytestmark = pytest.mark.skipif(bool(loops.missing()), reason=loops.missing() or "has loop devices")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LoopDisk]:
    made = LoopDisk(tmp_path / "d.img", 64 << 20)
    made.plug()
    yield made
    made.close()


def test_nobody(disk: LoopDisk) -> None:
    assert holders.holders(Path(disk.device)) == []
    assert holders.describe(Path(disk.device)) == ""


def test_a_program_that_has_it_open(disk: LoopDisk) -> None:
    held = os.open(disk.device, os.O_RDONLY | os.O_EXCL)
    try:
        (told,) = holders.holders(Path(disk.device))
    finally:
        os.close(held)
    assert f"process {os.getpid()} (" in told


def test_a_loop_device_on_it(disk: LoopDisk) -> None:
    upper = subprocess.run(
        ["losetup", "--find", "--show", disk.device], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        told = holders.describe(Path(disk.device))
    finally:
        subprocess.run(["losetup", "--detach", upper], check=True)
    assert f"`losetup --detach {upper}`" in told


def test_a_mount_in_another_namespace(disk: LoopDisk, tmp_path: Path) -> None:
    subprocess.run(["mkfs.ext4", "-q", disk.device], check=True)
    (tmp_path / "m").mkdir()
    script = f"mount {disk.device} {tmp_path}/m && echo ready && read line"
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        told = holders.describe(Path(disk.device))
        other.kill()
    assert f"a mount at {tmp_path}/m in the mount namespace of process {other.pid} (" in told


def test_swap(disk: LoopDisk) -> None:
    subprocess.run(["mkswap", disk.device], check=True, capture_output=True)
    on = subprocess.run(["swapon", disk.device], check=False, capture_output=True, text=True)
    if on.returncode != 0:
        pytest.skip(f"swap cannot be used here: {on.stderr.strip()}")
    try:
        assert f"`swapoff {disk.device}`" in holders.describe(Path(disk.device))
    finally:
        subprocess.run(["swapoff", disk.device], check=True)
