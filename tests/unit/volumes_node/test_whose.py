"""Nothing but the volume's own is unmounted, whatever path a call names; and its own always can be."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from agent.errors import FailedPrecondition, InvalidArgument
from agent.model import Volume
from agent.volumes.rules.modes import Block, Filesystem, VolumeMode

from .conftest import SIZES, Machine, have

pytestmark = pytest.mark.root
EXT4 = Filesystem()
MODES = [EXT4, Block()]


def run(*argv: str | Path) -> None:
    subprocess.run(argv, check=True)


async def published(machine: Machine, name: str, mode: VolumeMode = EXT4) -> tuple[Volume, Path, Path]:
    size = SIZES[mode.fs_type] if isinstance(mode, Filesystem) else SIZES["ext4"]
    volume, staging, target = machine.volume(name, size), machine.path(f"{name}-staging"), machine.mounts / name
    await machine.node().stage(volume, staging, mode)
    await machine.node().publish(volume, staging, target, mode, readonly=False)
    return volume, staging, target


def put_foreign(machine: Machine, kind: str, path: Path) -> None:
    """Something at `path` that is none of Quarry's."""
    path.mkdir(exist_ok=True)
    if kind == "tmpfs":
        run("mount", "-t", "tmpfs", "tmpfs", path)
    elif kind == "a directory":
        (machine.home / "host").mkdir()
        run("mount", "--bind", machine.home / "host", path)
    elif kind == "another loop device":
        image = machine.home / "foreign.img"
        image.write_bytes(bytes(16 << 20))
        run("mkfs.ext4", "-q", image)
        run("mount", "-o", "loop", image, path)
    else:
        path.rmdir()
        path.touch()
        run("mount", "--bind", "/dev/null" if kind == "a character device" else "/etc/hostname", path)


FOREIGN = ["tmpfs", "a directory", "another loop device", "a character device", "a file"]


@pytest.mark.parametrize("mode", MODES)
async def test_what_another_volume_has_stays(machine: Machine, mode: VolumeMode) -> None:
    mine, _, _ = await published(machine, "mine", mode)
    other, staging, target = await published(machine, "other", mode)
    before = machine.mounted()
    for name, volume in ((mine.meta.name, mine), ("vol-" + 32 * "f", None), ("anything", None)):
        with pytest.raises(FailedPrecondition, match=f"of volume {other.meta.name} and not of volume {name}"):
            await machine.node().unpublish(name, target)
        if isinstance(mode, Filesystem):
            with pytest.raises(FailedPrecondition, match=f"of volume {other.meta.name}"):
                await machine.node().unpublish(name, staging)
            with pytest.raises(FailedPrecondition):
                await machine.node().unstage(name, volume, staging)
    assert machine.mounted() == before
    await machine.node().unpublish(other.meta.name, target)
    if isinstance(mode, Filesystem):  # staged alone it is in use by nobody, and stays all the same
        with pytest.raises(FailedPrecondition, match=f"of volume {other.meta.name}"):
            await machine.node().unstage("vol-" + 32 * "f", None, staging)
        assert str(staging) in machine.mounted()


@pytest.mark.parametrize("kind", FOREIGN)
async def test_what_is_not_ours_stays(machine: Machine, kind: str) -> None:
    volume, staging, target = await published(machine, "v")
    there = machine.mounts / "foreign"
    put_foreign(machine, kind, there)
    before = machine.mounted()
    for call in (
        machine.node().unpublish(volume.meta.name, there),
        machine.node().unpublish("never-heard-of", there),
        machine.node().unstage("never-heard-of", None, there),
    ):
        with pytest.raises(FailedPrecondition, match=f"{there} is in use: .* none of Quarry's"):
            await call
    assert machine.mounted() == before
    run("umount", there)
    for name in (target, there):
        await machine.node().unpublish(volume.meta.name, name)
    await machine.node().unstage(volume.meta.name, volume, staging)
    assert machine.loops() == machine.mounted() == []
    assert not there.exists()


async def test_a_foreign_mount_over_an_own_one_stays_and_below_one_too(machine: Machine) -> None:
    volume, staging, target = await published(machine, "v")
    put_foreign(machine, "tmpfs", target)
    with pytest.raises(FailedPrecondition, match="tmpfs"):
        await machine.node().unpublish(volume.meta.name, target)
    assert machine.mounted().count(str(target)) == 2
    run("mount", "--bind", staging, target)  # own, foreign, own
    with pytest.raises(FailedPrecondition, match="tmpfs"):
        await machine.node().unpublish(volume.meta.name, target)
    assert machine.mounted().count(str(target)) == 2
    run("umount", target)
    await machine.node().unpublish(volume.meta.name, target)
    assert machine.mounted() == [str(staging)]


async def test_its_staging_path_is_for_unstage_and_its_target_for_unpublish(machine: Machine) -> None:
    volume, staging, target = await published(machine, "v")
    with pytest.raises(FailedPrecondition, match="is staged: NodeUnstageVolume"):
        await machine.node().unpublish(volume.meta.name, staging)
    with pytest.raises(InvalidArgument, match="target_path"):
        await machine.node().publish(volume, staging, staging, EXT4, readonly=False)
    run("umount", staging)  # by somebody else
    with pytest.raises(FailedPrecondition, match="is published: NodeUnpublishVolume"):
        await machine.node().unstage(volume.meta.name, volume, target)
    assert machine.mounted() == [str(target)]
    await machine.node().unpublish(volume.meta.name, target)
    await machine.node().unstage(volume.meta.name, volume, staging)
    assert machine.loops() == machine.mounted() == []


@pytest.mark.parametrize("lost", ["nothing", "the volume", "all notes", "the volume and all notes"])
@pytest.mark.parametrize("mode", [*MODES, Filesystem("xfs"), Filesystem("btrfs")])
async def test_an_own_mount_is_removable_whatever_is_lost(machine: Machine, mode: VolumeMode, lost: str) -> None:
    if isinstance(mode, Filesystem) and (reason := have(f"mkfs.{mode.fs_type}")):
        pytest.skip(reason)
    volume, staging, target = await published(machine, "v", mode)
    known: Volume | None = volume
    if "the volume" in lost:
        machine.files.pop(volume.meta.name).unlink()
        known = None
    if "notes" in lost:
        shutil.rmtree(machine.state)
    await machine.node().unpublish(volume.meta.name, target)
    assert not target.exists()
    await machine.node().unstage(volume.meta.name, known, staging)
    assert machine.mounted() == []


@pytest.mark.parametrize("then", ["nobody", "another volume", "somebody else"])
async def test_the_node_of_a_device_that_is_gone_is_removable(machine: Machine, then: str) -> None:
    """Also when its number is another's by now: a bound node does not keep its device."""
    volume, staging, target = await published(machine, "v", Block())
    run("losetup", "-d", machine.loops()[0])
    if then == "another volume":
        await machine.node().stage(machine.volume("other"), machine.path("other"), Block())
    elif then == "somebody else":
        (machine.home / "foreign").write_bytes(bytes(1 << 20))
        run("losetup", "--find", machine.home / "foreign")
    await machine.node().unpublish(volume.meta.name, target)
    assert not target.exists()
    await machine.node().unstage(volume.meta.name, volume, staging)
    assert machine.mounted() == []
