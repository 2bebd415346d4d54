"""A volume on a node: staged, published, used, grown, and back; each step repeated, refused or out of order."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from agent.errors import AlreadyExists, Busy, FailedPrecondition, InvalidArgument, NotFound, QuarryError
from agent.host import filesystem
from agent.host.process import find_program
from agent.model import AccessMode, Attachment, Volume
from agent.volumes.rules.modes import Block, Filesystem, VolumeMode

from .conftest import MIB, NODE, SIZES, Machine

pytestmark = pytest.mark.root
EXT4 = Filesystem()


def write_to(device: Path) -> None:
    descriptor = os.open(device, os.O_RDWR)
    try:
        os.pwrite(descriptor, b"x", 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(("fs_type", "size_bytes"), SIZES.items())
async def test_filesystem_there_and_back(machine: Machine, fs_type: str, size_bytes: int) -> None:
    if find_program(f"mkfs.{fs_type}") is None:
        pytest.skip(f"mkfs.{fs_type} is not installed")
    volume, mode = machine.volume(size_bytes=size_bytes), Filesystem(fs_type, ("noatime",))
    staging, target = machine.path("staging"), machine.mounts / "target"
    for _ in range(3):  # each time a fresh agent
        await machine.node().stage(volume, staging, mode)
        await machine.node().publish(volume, staging, target, mode, readonly=False)
    assert len(machine.loops()) == 1
    assert sorted(machine.mounted()) == [str(staging), str(target)]
    (target / "file").write_text("kept")
    stats = await machine.node().stats(volume, target)
    assert size_bytes / 2 < stats.total_bytes <= size_bytes
    assert stats.used_bytes + stats.available_bytes <= stats.total_bytes
    assert fs_type == "btrfs" or stats.total_inodes > stats.used_inodes > 0  # btrfs has no number of inodes
    for _ in range(3):
        await machine.node().unpublish(volume.meta.name, target)
    assert not target.exists()
    for _ in range(3):
        await machine.node().unstage(volume.meta.name, volume, staging)
    assert machine.loops() == machine.mounted() == []
    await machine.node().stage(volume, staging, mode)
    assert (staging / "file").read_text() == "kept"


async def test_block_there_and_back(machine: Machine) -> None:
    volume, mode = machine.volume(), Block()
    staging, target = machine.path("staging"), machine.mounts / "target"
    for _ in range(3):
        await machine.node().stage(volume, staging, mode)
        await machine.node().publish(volume, staging, target, mode, readonly=False)
    with target.open("r+b") as device:
        os.pwrite(device.fileno(), b"raw data", 4096)
        os.fsync(device.fileno())
    assert (await machine.node().stats(volume, target)).total_bytes == 64 * MIB
    volume = machine.grown(volume, 96 * MIB)
    assert await machine.node().expand(volume, target) == 96 * MIB
    for _ in range(3):
        await machine.node().unpublish(volume.meta.name, target)
        await machine.node().unstage(volume.meta.name, volume, staging)
    assert not target.exists()
    assert machine.loops() == machine.mounted() == []
    assert machine.files[volume.meta.name].read_bytes()[4096:4104] == b"raw data"


@pytest.mark.parametrize(("fs_type", "size_bytes"), SIZES.items())
async def test_expand_in_use(machine: Machine, fs_type: str, size_bytes: int) -> None:
    if not filesystem.can_grow_mounted(fs_type) or find_program(f"mkfs.{fs_type}") is None:
        pytest.skip(f"cannot grow a mounted {fs_type} here: no capability SYS_RESOURCE, or mkfs is missing")
    volume, mode = machine.volume(size_bytes=size_bytes), Filesystem(fs_type)
    staging, node = machine.path("staging"), machine.node()
    await node.stage(volume, staging, mode)
    before = (await node.stats(volume, staging)).total_bytes
    volume = machine.grown(volume, 2 * size_bytes)
    for _ in range(2):
        assert await node.expand(volume, staging) == 2 * size_bytes
    assert (await node.stats(volume, staging)).total_bytes > 1.8 * before


async def test_expand_without_the_capability_says_so_and_restaging_grows(machine: Machine) -> None:
    if filesystem.can_grow_mounted("ext4"):
        pytest.skip("this process may grow a mounted ext4, so the refusal cannot be seen")
    volume, staging, node = machine.volume(), machine.path("staging"), machine.node()
    await node.stage(volume, staging, EXT4)
    (staging / "file").write_text("kept")
    before = (await node.stats(volume, staging)).total_bytes
    volume = machine.grown(volume, 128 * MIB)
    with pytest.raises(FailedPrecondition, match="SYS_RESOURCE"):
        await node.expand(volume, staging)
    await node.unstage(volume.meta.name, volume, staging)
    await node.stage(volume, staging, EXT4)
    assert (await node.stats(volume, staging)).total_bytes > 1.8 * before
    assert (staging / "file").read_text() == "kept"


async def test_expanded_while_nowhere_staged_grows_at_stage(machine: Machine) -> None:
    volume, staging, node = machine.volume(), machine.path("staging"), machine.node()
    await node.stage(volume, staging, EXT4)
    before = (await node.stats(volume, staging)).total_bytes
    await node.unstage(volume.meta.name, volume, staging)
    volume = machine.grown(volume, 128 * MIB)
    await node.stage(volume, staging, EXT4)
    assert (await node.stats(volume, staging)).total_bytes > 1.8 * before


async def test_readonly_filesystem(machine: Machine) -> None:
    volume, staging, node = machine.volume(), machine.path("staging"), machine.node()
    with pytest.raises(FailedPrecondition, match="blank"):
        await node.stage(volume, staging, EXT4, readonly=True)
    assert machine.loops() == []
    await node.stage(volume, staging, EXT4)
    (staging / "file").write_text("kept")
    for _ in range(2):
        await node.publish(volume, staging, machine.mounts / "ro", EXT4, readonly=True)
    with pytest.raises(OSError, match="Read-only"):
        (machine.mounts / "ro" / "x").touch()
    with pytest.raises(AlreadyExists, match="as read-only"):
        await node.publish(volume, staging, machine.mounts / "ro", EXT4, readonly=False)
    await node.publish(volume, staging, machine.mounts / "rw", EXT4, readonly=False)
    (machine.mounts / "rw" / "x").touch()
    for name in ("ro", "rw"):
        await node.unpublish(volume.meta.name, machine.mounts / name)
    await node.unstage(volume.meta.name, volume, staging)
    volume = machine.volume(readonly=True)  # the attachment itself is read-only
    await node.stage(volume, staging, EXT4)
    with pytest.raises(OSError, match="Read-only"):
        (staging / "y").touch()
    with pytest.raises(FailedPrecondition):
        await node.expand(volume, staging)


def shared_by_readers(volume: Volume) -> Volume:
    """As ReadOnlyMany: another node has it too."""
    readers = tuple(Attachment(node, f"nqn.{node}", AccessMode.ROX, readonly=True) for node in (NODE, "node-b"))
    return replace(volume, spec=replace(volume.spec, attachments=readers))


@pytest.mark.parametrize(("fs_type", "size_bytes"), SIZES.items())
async def test_a_filesystem_that_several_nodes_read_is_never_written_to(
    machine: Machine, fs_type: str, size_bytes: int
) -> None:
    if find_program(f"mkfs.{fs_type}") is None:
        pytest.skip(f"mkfs.{fs_type} is not installed")
    node, mode, staging = machine.node(), Filesystem(fs_type), machine.path("staging")
    volume, torn, snapshot = (machine.volume(name, size_bytes) for name in ("v", "torn", "snapshot"))
    await node.stage(volume, staging, mode)
    with (staging / "file").open("w") as file:
        file.write("kept")
        file.flush()
        os.fsync(file.fileno())
    shutil.copyfile(machine.files[volume.meta.name], machine.files[torn.meta.name])  # as after a power failure
    async with node.frozen(volume):
        shutil.copyfile(machine.files[volume.meta.name], machine.files[snapshot.meta.name])
    await node.unstage(volume.meta.name, volume, staging)

    for each, clean in ((volume, True), (snapshot, True), (torn, False)):
        before = machine.files[each.meta.name].read_bytes()
        for _ in range(2):
            if clean:
                await node.stage(shared_by_readers(each), staging, mode)
                assert (staging / "file").read_text() == "kept"
            else:
                with pytest.raises(FailedPrecondition, match="one node alone"):
                    await node.stage(shared_by_readers(each), staging, mode)
        await node.unstage(each.meta.name, each, staging)
        assert machine.files[each.meta.name].read_bytes() == before
        await node.stage(each, staging, mode)
        (staging / "file").write_text("changed")
        await node.unstage(each.meta.name, each, staging)
    assert machine.loops() == machine.mounted() == []


async def test_readonly_block_refuses_writes(machine: Machine) -> None:
    volume, staging, node = machine.volume(), machine.path("staging"), machine.node()
    await node.stage(volume, staging, Block())
    await node.publish(volume, staging, machine.mounts / "ro", Block(), readonly=True)
    with pytest.raises(PermissionError):
        write_to(machine.mounts / "ro")
    with pytest.raises(FailedPrecondition, match="published read-only"):
        await node.publish(volume, staging, machine.mounts / "rw", Block(), readonly=False)
    assert not (machine.mounts / "rw").exists()
    await node.unpublish(volume.meta.name, machine.mounts / "ro")
    await node.publish(volume, staging, machine.mounts / "rw", Block(), readonly=False)
    write_to(machine.mounts / "rw")


async def test_readonly_flag_does_not_outlive_the_attachment(machine: Machine) -> None:
    """The kernel keeps it with the loop device, whoever gets that next."""
    volume, staging, node = machine.volume(), machine.path("staging"), machine.node()
    await node.stage(volume, staging, Block())
    await node.publish(volume, staging, machine.mounts / "ro", Block(), readonly=True)
    (device,) = machine.loops()
    await node.unpublish(volume.meta.name, machine.mounts / "ro")
    await node.unstage(volume.meta.name, volume, staging)
    assert Path(f"/sys/block/{Path(device).name}/ro").read_text() == "0\n"  # noqa: ASYNC240 - sysfs


async def test_without_privileges_the_remedy_is_named(machine: Machine) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    machine.path("staging")
    script = (
        "import asyncio, pathlib, sys; sys.path.insert(0, sys.argv[2]); from conftest import Machine;"
        "from agent.volumes.attach.node import Filesystem; machine = Machine(pathlib.Path(sys.argv[1]));"
        "volume = machine.volume();"
        "asyncio.run(machine.node().stage(volume, machine.mounts / 'staging', Filesystem()))"
    )
    argv = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", script]
    argv += [str(machine.home), str(Path(__file__).parent)]
    agent = await asyncio.create_subprocess_exec(
        *argv, cwd=Path(__file__).parents[3], stderr=asyncio.subprocess.PIPE
    )  # fmt: skip
    _, stderr = await agent.communicate()
    assert b"FailedPrecondition: attaching and mounting volumes needs root" in stderr
    assert machine.loops() == machine.mounted() == []


async def test_not_published_to_this_node(machine: Machine) -> None:
    volume = machine.volume()
    elsewhere = replace(volume, spec=replace(volume.spec, attachments=()))
    node = machine.node()
    with pytest.raises(FailedPrecondition, match="not published"):
        await node.stage(elsewhere, machine.path("staging"), EXT4)
    await node.stage(volume, machine.path("staging"), EXT4)
    with pytest.raises(FailedPrecondition, match="not published"):
        await node.publish(elsewhere, machine.path("staging"), machine.mounts / "t", EXT4, readonly=False)


async def test_order_is_enforced_forward(machine: Machine) -> None:
    volume, staging, target, node = machine.volume(), machine.path("staging"), machine.mounts / "t", machine.node()
    with pytest.raises(FailedPrecondition, match="not staged"):
        await node.publish(volume, staging, target, EXT4, readonly=False)
    assert not target.exists()
    await node.stage(volume, staging, EXT4)
    with pytest.raises(FailedPrecondition, match="stage it first"):
        await node.publish(volume, machine.path("other"), target, EXT4, readonly=False)
    with pytest.raises(AlreadyExists, match="as a filesystem"):
        await node.stage(volume, staging, Block())
    with pytest.raises(FailedPrecondition, match="as a filesystem"):
        await node.stage(volume, machine.path("other"), Block())
    with pytest.raises(FailedPrecondition, match="in use at"):
        await node.stage(volume, machine.path("other"), EXT4)
    await node.publish(volume, staging, target, EXT4, readonly=False)
    with pytest.raises(FailedPrecondition, match="still in use"):
        await node.unstage(volume.meta.name, volume, staging)
    assert len(machine.mounted()) == 2
    other = machine.volume("other")
    await node.stage(other, machine.path("other"), EXT4)
    with pytest.raises(FailedPrecondition, match="is mounted there"):
        await node.publish(other, machine.path("other"), target, EXT4, readonly=False)
    with pytest.raises(FailedPrecondition, match="is mounted there"):
        await node.stage(machine.volume("third"), staging, EXT4)
    assert len(machine.loops()) == 2


async def test_the_way_back_tolerates_everything(machine: Machine) -> None:
    node, volume = machine.node(), machine.volume()
    for name in (volume.meta.name, "never-heard-of", "x" * 10_000, "../../etc", "a\0b", ""):
        await node.unpublish(name, machine.mounts / "absent")
        await node.unpublish(name, machine.mounts / "absent" / "deeper")
        await node.unstage(name, None, machine.mounts / "absent")
    await node.unstage(volume.meta.name, volume, machine.path("staging"))


async def test_unstage_when_the_record_is_gone(machine: Machine) -> None:
    volume, staging = machine.volume(), machine.path("staging")
    await machine.node().stage(volume, staging, EXT4)
    file = machine.files.pop(volume.meta.name)
    file.unlink()
    await machine.node().unstage(volume.meta.name, None, staging)
    assert machine.loops() == machine.mounted() == []


async def test_device_of_a_replaced_file_is_not_used(machine: Machine) -> None:
    """As after a delete and a new volume whose lvol got the same path, with a crash that left the device."""
    volume, staging = machine.volume(), machine.path("staging")
    await machine.node().stage(volume, staging, Block())
    file = machine.files[volume.meta.name]
    file.unlink()
    machine.volume()
    await machine.node().stage(volume, staging, EXT4)
    (staging / "file").write_text("new")
    assert len(machine.loops()) == 1
    await machine.node().unstage(volume.meta.name, volume, staging)
    assert machine.loops() == []
    assert any(file.read_bytes())


async def test_leftovers_are_released_but_not_what_is_in_use(machine: Machine) -> None:
    used, idle, gone, kept = (machine.volume(name) for name in ("used", "idle", "gone", "kept"))
    for volume in (used, idle, gone, kept):
        await machine.node().stage(volume, machine.path("block"), Block())
    await machine.node().publish(used, machine.path("block"), machine.mounts / "used", Block(), readonly=False)
    moved = [replace(volume, spec=replace(volume.spec, attachments=())) for volume in (used, idle)]
    released = await machine.node().release_leftovers([*moved, kept])
    assert released == sorted([idle.meta.name, gone.meta.name])
    assert len(machine.loops()) == 2


async def test_device_smaller_than_the_volume_is_refused(machine: Machine) -> None:
    volume = machine.volume()
    os.truncate(machine.files[volume.meta.name], 32 * MIB)
    with pytest.raises(FailedPrecondition, match="bytes where volume"):
        await machine.node().stage(volume, machine.path("staging"), EXT4)
    assert machine.loops() == []


async def test_stats_and_expand_where_the_volume_is_not(machine: Machine) -> None:
    volume, staging, node = machine.volume(), machine.path("staging"), machine.node()
    for path in (staging, Path("some/path"), Path("/nowhere"), Path("/x" * 5000), Path("a\0b"), Path("/")):
        for call in (node.stats, node.expand):
            with pytest.raises(NotFound):
                await call(volume, path)
    await node.stage(volume, staging, EXT4)
    for path in (machine.path("other"), Path("/"), staging / "below"):
        with pytest.raises(NotFound):
            await node.stats(volume, path)
        with pytest.raises(NotFound):
            await node.expand(volume, path)


@pytest.mark.parametrize("mode", [EXT4, Block()])
async def test_paths_outside_and_through_links(machine: Machine, mode: VolumeMode) -> None:
    volume, node, staging = machine.volume(), machine.node(), machine.path("staging")
    outside = machine.home / "outside"
    outside.mkdir()
    (machine.mounts / "link").symlink_to(outside)
    name = volume.meta.name
    await node.stage(volume, staging, mode)
    for bad in (outside, machine.mounts / "link", machine.mounts / "link" / "x", machine.mounts / "n" / ".." / "x"):
        for call in (
            node.stage(volume, bad, mode),
            node.unstage(name, volume, bad),
            node.publish(volume, staging, bad, mode, readonly=False),
            node.unpublish(name, bad),
        ):
            with pytest.raises(InvalidArgument):
                await call
    with pytest.raises(InvalidArgument):
        await node.publish(volume, staging, machine.mounts / ("n" * 10_000), mode, readonly=False)
    assert list(outside.iterdir()) == []
    assert len(machine.mounted()) == (1 if isinstance(mode, Filesystem) else 0)


async def test_target_with_content_is_not_removed(machine: Machine) -> None:
    (machine.path("full") / "file").write_text("precious")
    with pytest.raises(FailedPrecondition, match="not empty"):
        await machine.node().unpublish("x", machine.mounts / "full")
    assert (machine.mounts / "full" / "file").read_text() == "precious"


async def test_busy_target_says_so_and_stays(machine: Machine) -> None:
    volume, staging, node = machine.volume(), machine.path("staging"), machine.node()
    await node.stage(volume, staging, EXT4)
    with (staging / "open").open("w"), pytest.raises(FailedPrecondition, match="busy"):
        await node.unstage(volume.meta.name, volume, staging)
    assert machine.mounted() == [str(staging)]
    await node.unstage(volume.meta.name, volume, staging)


async def test_concurrent_calls_serialize(machine: Machine) -> None:
    volume, staging, node = machine.volume(), machine.path("staging"), machine.node()
    results = await asyncio.gather(*(node.stage(volume, staging, EXT4) for _ in range(8)), return_exceptions=True)
    assert all(result is None or isinstance(result, Busy) for result in results)
    assert None in results
    assert (len(machine.loops()), machine.mounted()) == (1, [str(staging)])
    mixed = [
        node.stage(volume, staging, EXT4) if turn % 2 else node.unstage(volume.meta.name, volume, staging)
        for turn in range(6)
    ]
    outcomes = await asyncio.gather(*mixed, return_exceptions=True)
    assert all(outcome is None or isinstance(outcome, QuarryError) for outcome in outcomes)
    assert len(machine.mounted()) == len(machine.loops()) <= 1
