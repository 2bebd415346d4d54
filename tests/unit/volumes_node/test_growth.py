"""A filesystem smaller than its volume is grown when it is staged; one that cannot grow is mounted all the same."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from agent.errors import FailedPrecondition, OutOfRange
from agent.host import device as devices
from agent.host import filesystem
from agent.volumes.rules.modes import Block, Filesystem, VolumeMode

from .conftest import MIB, Machine, Programs, have

pytestmark = pytest.mark.root
EXT4 = Filesystem()
TIB = 1 << 40


def facts(device: Path) -> dict[str, str]:
    shown = subprocess.run(["dumpe2fs", "-h", device], capture_output=True, text=True, check=True).stdout
    return {name: value.strip() for name, _, value in (line.partition(":") for line in shown.splitlines())}


@pytest.mark.parametrize("mib", [8, 12, 64, 511, 512])
async def test_a_small_ext4_grows_to_terabytes(machine: Machine, mib: int) -> None:
    """To 2 TiB here, and by its layout to 16."""
    volume, staging, node = machine.volume("v", mib * MIB), machine.path("staging"), machine.node()
    await node.stage(volume, staging, EXT4)
    (staging / "file").write_text("kept")
    await node.unstage(volume.meta.name, volume, staging)
    found = facts(machine.files[volume.meta.name])
    assert (found["Block size"], found["Inode size"]) == ("4096", "256")
    assert "has_journal" in found["Filesystem features"]
    assert int(found["Inodes per group"]) * (16 * TIB // (int(found["Blocks per group"]) * 4096)) < 1 << 32
    try:
        volume = machine.grown(volume, 2 * TIB)
    except OSError:
        pytest.skip("the filesystem of the host has no files of 2 TiB")
    await node.stage(volume, staging, EXT4)
    assert (staging / "file").read_text() == "kept"
    assert filesystem.usage(staging).total_bytes > 1.9 * TIB
    assert (await node.stats(volume, staging)).problem == ""


@pytest.mark.parametrize(
    ("options", "size", "inodes"),
    [(("-b", "1024"), "1024", None), (("-T", "small"), "1024", None), (("-i", "4096"), "4096", "16384")],
)
async def test_what_the_class_says_counts(
    machine: Machine, options: tuple[str, ...], size: str, inodes: str | None
) -> None:
    volume = machine.volume()
    await machine.node().stage(volume, machine.path("staging"), Filesystem("ext4", (), options))
    await machine.node().unstage(volume.meta.name, volume, machine.path("staging"))
    found = facts(machine.files[volume.meta.name])
    assert found["Block size"] == size
    assert inodes in (None, found["Inode count"])


async def test_one_that_cannot_grow_is_mounted_at_its_size_and_says_so(machine: Machine) -> None:
    volume, staging, node = machine.volume(), machine.path("staging"), machine.node()
    mode = Filesystem("ext4", (), ("-b", "1024"))
    await node.stage(volume, staging, mode)
    (staging / "file").write_text("kept")
    await node.unstage(volume.meta.name, volume, staging)
    try:
        volume = machine.grown(volume, 2 * TIB)
    except OSError:
        pytest.skip("the filesystem of the host has no files of 2 TiB")
    for _ in range(2):
        await node.stage(volume, staging, mode)
        assert (staging / "file").read_text() == "kept"
    problem = (await node.stats(volume, staging)).problem
    assert f"has {64 * MIB} of its {2 * TIB} bytes and could not be grown (" in problem
    assert "too many block group descriptors" in problem
    assert "copied to a new volume" in problem
    with pytest.raises(OutOfRange, match="copied to a new volume"):
        await node.expand(volume, staging)
    # The next agent finds out by itself.
    problem = (await machine.node().stats(volume, staging)).problem
    assert f"has {64 * MIB} of its {2 * TIB} bytes; it is grown when the volume is staged next" in problem


@pytest.mark.parametrize("fs_type", ["xfs", "btrfs"])
async def test_the_others_say_so_too(machine: Machine, programs: Programs, fs_type: str) -> None:
    if reason := have(f"mkfs.{fs_type}"):
        pytest.skip(reason)
    volume, staging = machine.volume("v", 320 * MIB), machine.path("staging")
    node, mode = machine.node(), Filesystem(fs_type)
    await node.stage(volume, staging, mode)
    (staging / "file").write_text("kept")
    await node.unstage(volume.meta.name, volume, staging)
    volume = machine.grown(volume, 640 * MIB)
    name, action = ("xfs_growfs", "*") if fs_type == "xfs" else ("btrfs", "*resize*")
    programs(name, f'case "$*" in {action}) echo "not this one" >&2; exit 1;; esac; exec "$real" "$@"')
    await node.stage(volume, staging, mode)
    assert (staging / "file").read_text() == "kept"
    assert "could not be grown (not this one)" in (await node.stats(volume, staging)).problem
    with pytest.raises(OutOfRange, match="not this one"):
        await node.expand(volume, staging)
    (machine.home / "bin" / name).unlink()
    assert await node.expand(volume, staging) == 640 * MIB
    assert (await node.stats(volume, staging)).problem == ""


async def test_a_small_or_full_of_inodes_one_is_not_called_behind(machine: Machine) -> None:
    for name, size, options in (("tiny", 8, ()), ("inodes", 256, ("-i", "1024"))):
        volume, staging = machine.volume(name, size * MIB), machine.path(name)
        await machine.node().stage(volume, staging, Filesystem("ext4", (), options))
        assert (await machine.node().stats(volume, staging)).problem == ""


async def test_one_that_is_only_read_is_not_grown_and_nothing_is_wrong_with_that(machine: Machine) -> None:
    volume, staging, node = machine.volume(), machine.path("staging"), machine.node()
    await node.stage(volume, staging, EXT4)
    await node.unstage(volume.meta.name, volume, staging)
    volume = machine.grown(volume, 256 * MIB)
    for mode, readonly in ((EXT4, True), (Filesystem("ext4", ("ro",)), False)):
        await node.stage(volume, staging, mode, readonly=readonly)
        assert filesystem.usage(staging).total_bytes < 64 * MIB
        assert (await node.stats(volume, staging)).problem == ""
        await node.unstage(volume.meta.name, volume, staging)
    await node.stage(volume, staging, EXT4)
    assert filesystem.usage(staging).total_bytes > 200 * MIB


@pytest.mark.parametrize("mode", [EXT4, Block()])
async def test_staged_once_more_after_it_was_expanded(machine: Machine, mode: VolumeMode) -> None:
    """kubelet asks for NodeExpandVolume only once NodeStageVolume has succeeded."""
    volume, staging, target = machine.volume(), machine.path("staging"), machine.mounts / "target"
    for size_bytes in (64 * MIB, 128 * MIB):
        volume = machine.grown(volume, size_bytes)
        for _ in range(2):
            await machine.node().stage(volume, staging, mode)
            await machine.node().publish(volume, staging, target, mode, readonly=False)
        assert (await machine.node().stats(volume, target)).problem == ""
    if isinstance(mode, Filesystem) and not filesystem.can_grow_mounted("ext4"):
        with pytest.raises(FailedPrecondition, match="SYS_RESOURCE"):
            await machine.node().expand(volume, target)
        await machine.node().unpublish(volume.meta.name, target)
        await machine.node().unstage(volume.meta.name, volume, staging)
        await machine.node().stage(volume, staging, mode)
        assert filesystem.usage(staging).total_bytes > 100 * MIB
        return
    assert await machine.node().expand(volume, target) == 128 * MIB
    assert (await machine.node().stats(volume, target)).total_bytes > 100 * MIB


@pytest.mark.parametrize("fs_type", ["xfs", "btrfs"])
async def test_staged_once_more_after_it_was_expanded_it_still_grows(machine: Machine, fs_type: str) -> None:
    if reason := have(f"mkfs.{fs_type}"):
        pytest.skip(reason)
    volume, staging, mode = machine.volume("v", 320 * MIB), machine.path("staging"), Filesystem(fs_type)
    await machine.node().stage(volume, staging, mode)
    volume = machine.grown(volume, 640 * MIB)
    await machine.node().stage(volume, staging, mode)
    assert await machine.node().expand(volume, staging) == 640 * MIB
    assert filesystem.usage(staging).total_bytes > 500 * MIB


@pytest.mark.parametrize("mode", [EXT4, Block()])
async def test_a_device_left_attached_while_its_volume_grew(machine: Machine, mode: VolumeMode) -> None:
    """As after a crash between attaching and mounting, or of a raw volume that is staged and nowhere published."""
    volume, staging = machine.volume(), machine.path("staging")
    await machine.node().stage(volume, staging, Block())
    volume = machine.grown(volume, 128 * MIB)
    await machine.node().stage(volume, staging, mode)
    assert devices.size_bytes(Path(machine.loops()[0])) == 128 * MIB


def grows_here(fs_type: str) -> None:
    if reason := have(f"mkfs.{fs_type}"):
        pytest.skip(reason)
    if not filesystem.can_grow_mounted(fs_type):
        pytest.skip("this process may not grow a mounted ext4: no capability SYS_RESOURCE")


@pytest.mark.parametrize("fs_type", ["ext4", "xfs", "btrfs"])
@pytest.mark.parametrize("agent", ["the same agent", "another agent"])
async def test_one_that_was_grown_is_told_as_grown_at_once(machine: Machine, fs_type: str, agent: str) -> None:
    """Not only once the kernel has written its superblock."""
    if reason := have(f"mkfs.{fs_type}"):
        pytest.skip(reason)
    node, mode = machine.node(), Filesystem(fs_type)
    volume, staging = machine.volume("v", 400 * MIB), machine.path("staging")
    await node.stage(volume, staging, mode)
    await node.unstage(volume.meta.name, volume, staging)
    volume = machine.grown(volume, 700 * MIB)
    await node.stage(volume, staging, mode)
    node = node if agent == "the same agent" else machine.node()
    assert (await node.stats(volume, staging)).problem == ""
    if not filesystem.can_grow_mounted(fs_type):
        return
    volume = machine.grown(volume, 1000 * MIB)
    await node.expand(volume, staging)
    node = node if agent == "the same agent" else machine.node()
    assert (await node.stats(volume, staging)).problem == ""


@pytest.mark.parametrize("fs_type", ["ext4", "xfs", "btrfs"])
async def test_one_that_somebody_grew_by_hand_is_told_as_grown(
    machine: Machine, programs: Programs, fs_type: str
) -> None:
    grows_here(fs_type)
    volume, staging, node = machine.volume("v", 400 * MIB), machine.path("staging"), machine.node()
    mode = Filesystem(fs_type)
    await node.stage(volume, staging, mode)
    await node.unstage(volume.meta.name, volume, staging)
    volume = machine.grown(volume, 700 * MIB)
    name = {"ext4": "resize2fs", "xfs": "xfs_growfs", "btrfs": "btrfs"}[fs_type]
    programs(name, 'case "$*" in *check*) exec "$real" "$@";; esac; echo "not this one" >&2; exit 1')
    await node.stage(volume, staging, mode)
    for each in (node, machine.node()):
        assert f"has {400 * MIB} of its {700 * MIB} bytes" in (await each.stats(volume, staging)).problem
    (machine.home / "bin" / name).unlink()
    assert await machine.node().expand(volume, staging) == 700 * MIB  # as by hand: the first agent knows nothing of it
    assert (await node.stats(volume, staging)).problem == ""


async def test_a_btrfs_that_keeps_its_data_twice_is_not_called_behind(machine: Machine) -> None:
    """It says that it has half of what it has."""
    if reason := have("mkfs.btrfs"):
        pytest.skip(reason)
    volume, staging = machine.volume("v", 400 * MIB), machine.path("staging")
    await machine.node().stage(volume, staging, Filesystem("btrfs", (), ("-d", "dup")))
    assert (await machine.node().stats(volume, staging)).problem == ""
