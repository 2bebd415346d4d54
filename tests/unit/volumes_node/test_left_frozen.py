"""A filesystem that its user froze and never thawed (a backup's hook that died) goes all the same, and comes back."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agent.errors import Unavailable
from agent.model import Volume
from agent.volumes.rules.modes import Filesystem

from .conftest import SIZES, Machine, have

pytestmark = [pytest.mark.root, pytest.mark.parametrize("fs_type", SIZES)]


@pytest.fixture(autouse=True)
def _makes(fs_type: str) -> None:
    if reason := have(f"mkfs.{fs_type}", "fsfreeze"):
        pytest.skip(reason)


def run(*argv: str | Path) -> None:
    subprocess.run(argv, check=True)


async def left_frozen(machine: Machine, fs_type: str, *, readonly: bool = False) -> tuple[Volume, Path]:
    volume, staging = machine.volume(size_bytes=SIZES[fs_type]), machine.path("staging")
    await machine.node().stage(volume, staging, Filesystem(fs_type))
    (staging / "file").write_text("kept")
    if readonly:
        await machine.node().unstage(volume.meta.name, volume, staging)
        await machine.node().stage(volume, staging, Filesystem(fs_type), readonly=True)
    run("fsfreeze", "-f", staging)
    return volume, staging


async def comes_back(machine: Machine, volume: Volume, fs_type: str) -> None:
    assert machine.loops() == machine.mounted() == []
    staging = machine.path("staging")
    await machine.node().stage(volume, staging, Filesystem(fs_type))
    assert (staging / "file").read_text() == "kept"
    async with asyncio.timeout(20):
        await asyncio.to_thread(run, "sh", "-c", f"echo more > {staging}/file; sync -f {staging}")


@pytest.mark.parametrize("readonly", [False, True])
async def test_it_is_unstaged(machine: Machine, fs_type: str, readonly: bool) -> None:
    volume, staging = await left_frozen(machine, fs_type, readonly=readonly)
    await machine.node().unstage(volume.meta.name, volume, staging)
    await comes_back(machine, volume, fs_type)


async def test_it_is_unpublished_where_that_is_its_last_mount_and_not_thawed_before(
    machine: Machine, fs_type: str
) -> None:
    volume, staging = await left_frozen(machine, fs_type)
    target, other = machine.mounts / "target", machine.mounts / "other"
    for each in (target, other):
        await machine.node().publish(volume, staging, each, Filesystem(fs_type), readonly=False)
    await machine.node().unpublish(volume.meta.name, other)
    with subprocess.Popen(["sh", "-c", 'echo more > "$0"', str(target / "file")]) as writer:  # noqa: ASYNC220
        with pytest.raises(subprocess.TimeoutExpired):  # its freeze may be meant: another pod's is not thawed by this
            writer.wait(0.5)
        run("fsfreeze", "-u", staging)
    run("fsfreeze", "-f", staging)
    run("umount", staging)
    await machine.node().unpublish(volume.meta.name, target)
    await machine.node().unstage(volume.meta.name, volume, staging)
    assert machine.loops() == machine.mounted() == []


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("by", ["unstage", "unstage of a deleted volume", "stage", "the next start"])
async def test_one_whose_mounts_are_gone_already_gets_out_of_it(
    machine: Machine, fs_type: str, by: str, readonly: bool
) -> None:
    volume, staging = await left_frozen(machine, fs_type, readonly=readonly)
    run("umount", staging)
    assert len(machine.loops()) == 1
    if by == "unstage":
        await machine.node().unstage(volume.meta.name, volume, staging)
    elif by == "unstage of a deleted volume":
        shutil.copyfile(machine.files[volume.meta.name], machine.home / "copy")
        machine.files[volume.meta.name].unlink()
        await machine.node().unstage(volume.meta.name, None, staging)
        (machine.home / "copy").rename(machine.files[volume.meta.name])
    elif by == "stage":
        await machine.node().stage(volume, staging, Filesystem(fs_type), readonly=readonly)
        await machine.node().unstage(volume.meta.name, volume, staging)
    else:
        assert await machine.node().release_leftovers([]) == [volume.meta.name]
    await comes_back(machine, volume, fs_type)


async def test_one_whose_device_a_program_has_open_is_not_detached_under_it(machine: Machine, fs_type: str) -> None:
    volume, staging = await left_frozen(machine, fs_type)
    hold = "import os, sys; os.open(sys.argv[1], os.O_RDONLY); print('held', flush=True); sys.stdin.read()"
    argv = [sys.executable, "-c", hold, str(Path(machine.loops()[0]))]
    run("umount", staging)
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:  # noqa: ASYNC220 - short
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(Unavailable, match=str(other.pid)):
            await machine.node().unstage(volume.meta.name, volume, staging)
        other.kill()
    await machine.node().unstage(volume.meta.name, volume, staging)
    await comes_back(machine, volume, fs_type)
