"""Only a blank volume is formatted, and a crash in the middle of formatting converges."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.errors import AlreadyExists, Busy, CommandFailed, FailedPrecondition, Unavailable
from agent.volumes.rules.modes import Block, Filesystem

from .conftest import MIB, SIZES, Machine, have, until_done

pytestmark = pytest.mark.root
EXT4 = Filesystem()


def digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def debugfs(file: Path, commands: str) -> None:
    argv = ["debugfs", "-w", "-f", "-", str(file)]
    subprocess.run(argv, input=commands, text=True, check=True, capture_output=True)


def uuid_of(file: Path) -> str:
    argv = ["blkid", "-p", "-s", "UUID", "-o", "value", str(file)]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def mkfs(*argv: str) -> Callable[[Path], None]:
    def make(file: Path) -> None:
        if shutil.which(argv[0]) is None:
            pytest.skip(f"{argv[0]} is not installed")
        subprocess.run([*argv, str(file)], check=True, capture_output=True)

    return make


def data_at(offset: int) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        with file.open("r+b") as opened:
            opened.seek(offset, os.SEEK_SET if offset >= 0 else os.SEEK_END)
            opened.write(b"somebody's data")

    return write


def truncated_ext4(file: Path) -> None:
    """A filesystem without its superblock: no signature, and yet all the data."""
    mkfs("mkfs.ext4", "-q")(file)
    with file.open("r+b") as opened:
        os.pwrite(opened.fileno(), bytes(4096), 0)


@pytest.mark.parametrize("intent", [False, True], ids=["", "with an intent of another lvol"])
@pytest.mark.parametrize(
    ("content", "named"),
    [
        (mkfs("mkfs.xfs", "-q"), "xfs filesystem"),
        (mkfs("mkfs.btrfs", "-q"), "btrfs filesystem"),
        (mkfs("mkfs.ext2", "-q"), "ext2 filesystem"),
        (mkfs("mkswap"), "swap"),
        (data_at(0), "unknown kind"),
        (data_at(-15), "unknown kind"),
        (truncated_ext4, "unknown kind"),
    ],
    ids=["xfs", "btrfs", "ext2", "swap", "first bytes", "last bytes", "lost superblock"],
)
async def test_other_content_is_refused_and_untouched(
    machine: Machine, content: Callable[[Path], None], named: str, intent: bool
) -> None:
    volume = machine.volume(size_bytes=SIZES.get(named.split()[0], 64 * MIB))
    file = machine.files[volume.meta.name]
    content(file)
    if intent:
        marker = machine.state / "formatting" / f"{volume.meta.name}.json"
        marker.parent.mkdir(parents=True)
        marker.write_text('{"lvol": "another", "uuid": "11111111-2222-3333-4444-555555555555"}')
    before = digest(file)
    for _ in range(2):
        with pytest.raises(FailedPrecondition, match=named):
            await machine.node().stage(volume, machine.path("staging"), EXT4)
    assert digest(file) == before
    assert machine.loops() == machine.mounted() == []


async def test_other_filesystem_than_asked_for(machine: Machine) -> None:
    if reason := have("mkfs.xfs"):
        pytest.skip(reason)
    volume, staging, node = machine.volume(size_bytes=320 * MIB), machine.path("staging"), machine.node()
    await node.stage(volume, staging, EXT4)
    with pytest.raises(AlreadyExists, match="not as xfs"):
        await node.stage(volume, staging, Filesystem("xfs"))
    await node.unstage(volume.meta.name, volume, staging)
    with pytest.raises(FailedPrecondition, match=r"should carry xfs but .* ext4"):
        await node.stage(volume, staging, Filesystem("xfs"))


@pytest.mark.parametrize(("fs_type", "least"), [("xfs", "300 MiB"), ("btrfs", "109 MiB")])
async def test_too_small_is_told_before_anything_happens(machine: Machine, fs_type: str, least: str) -> None:
    volume = machine.volume(size_bytes=64 * MIB)
    with pytest.raises(FailedPrecondition, match=least):
        await machine.node().stage(volume, machine.path("staging"), Filesystem(fs_type))
    await machine.node().stage(volume, machine.path("staging"), EXT4)


async def test_dirty_filesystem_is_recovered(machine: Machine) -> None:
    """The file copied while mounted is what a power cut leaves: a journal to replay."""
    volume, staging = machine.volume(), machine.path("staging")
    await machine.node().stage(volume, staging, EXT4)
    with (staging / "file").open("w") as file:
        file.write("kept")
        file.flush()
        os.fsync(file.fileno())
    copy = machine.home / "copy"
    shutil.copyfile(machine.files[volume.meta.name], copy)
    await machine.node().unstage(volume.meta.name, volume, staging)
    copy.replace(machine.files[volume.meta.name])
    await machine.node().stage(volume, staging, EXT4)
    assert (staging / "file").read_text() == "kept"


async def test_damage_beyond_safe_repair_waits_for_a_person(machine: Machine) -> None:
    volume, staging = machine.volume(), machine.path("staging")
    await machine.node().stage(volume, staging, EXT4)
    for number in range(200):
        (staging / f"file{number}").write_text("x")
    await machine.node().unstage(volume.meta.name, volume, staging)
    file = machine.files[volume.meta.name]
    debugfs(file, "set_inode_field <2> mode 0\nset_super_value state 2\n")
    with pytest.raises(FailedPrecondition, match="by hand"):
        await machine.node().stage(volume, staging, EXT4)
    assert machine.loops() == machine.mounted() == []


# --- crashes ---------------------------------------------------------------------------------------------------

AGENT = """
import asyncio, pathlib, sys
sys.path.insert(0, sys.argv[2])
from conftest import SIZES, Machine
from agent.volumes.rules.modes import Filesystem
machine = Machine(pathlib.Path(sys.argv[1]))
fs_type = sys.argv[3]
volume = machine.volume(size_bytes=SIZES[fs_type])
asyncio.run(machine.node().stage(volume, machine.path("staging"), Filesystem(fs_type)))
"""

STAND_INS = {
    "before anything": "kill -9 $PPID; exit 1",
    "after some metadata": (
        "for last; do :; done; printf half-made | dd of=$last bs=1M seek=5 conv=notrunc 2>/dev/null; "
        "kill -9 $PPID; exit 1"
    ),
    "all but the end": '{real} "$@"; for last; do :; done; '
    "dd if=/dev/zero of=$last bs=4096 count=1 seek={superblock} conv=notrunc 2>/dev/null; kill -9 $PPID; exit 1",
    "complete": '{real} "$@"; kill -9 $PPID; exit 0',
}


def run_agent(machine: Machine, fs_type: str, path_first: Path | None = None) -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    if path_first is not None:
        environment["PATH"] = f"{path_first}{os.pathsep}{environment['PATH']}"
    argv = [sys.executable, "-c", AGENT, str(machine.home), str(Path(__file__).parent), fs_type]
    return subprocess.Popen(argv, env=environment, cwd=Path(__file__).parents[3], stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("fs_type", SIZES)
@pytest.mark.parametrize("when", STAND_INS)
async def test_killed_in_mkfs_converges(machine: Machine, when: str, fs_type: str) -> None:
    if reason := have(f"mkfs.{fs_type}"):
        pytest.skip(reason)
    programs = machine.home / "bin"
    programs.mkdir()
    stand_in = programs / f"mkfs.{fs_type}"
    real = shutil.which(f"mkfs.{fs_type}")
    superblock = "16" if fs_type == "btrfs" else "0"
    script = STAND_INS[when].replace("{real}", str(real)).replace("{superblock}", superblock)
    stand_in.write_text("#!/bin/sh\n" + script + "\n")
    stand_in.chmod(0o755)
    with run_agent(machine, fs_type, programs) as agent:
        assert await asyncio.to_thread(agent.wait, 30) == -signal.SIGKILL
    assert machine.mounted() == []
    assert len(list((machine.state / "formatting").iterdir())) == 1
    with run_agent(machine, fs_type, programs) as agent:
        # A complete xfs or btrfs says so itself, and is taken as it is: no second mkfs to be killed in.
        expected = 0 if when == "complete" and fs_type != "ext4" else -signal.SIGKILL
        assert await asyncio.to_thread(agent.wait, 30) == expected
    volume, staging, mode = machine.volume(size_bytes=SIZES[fs_type]), machine.path("staging"), Filesystem(fs_type)
    await machine.node().stage(volume, staging, mode)
    (staging / "file").write_text("kept")
    assert len(machine.loops()) == 1
    assert list((machine.state / "formatting").iterdir()) == []
    await machine.node().unstage(volume.meta.name, volume, staging)
    await machine.node().stage(volume, staging, mode)
    assert (staging / "file").read_text() == "kept"


@pytest.mark.parametrize("fs_type", SIZES)
async def test_killed_at_any_moment_converges(machine: Machine, fs_type: str) -> None:
    """The agent is killed later and later in the same stage, until it gets through; then the data stays."""
    if reason := have(f"mkfs.{fs_type}"):
        pytest.skip(reason)
    delay_s, ended = 0.1, False
    for _ in range(12):
        with run_agent(machine, fs_type) as agent:
            with contextlib.suppress(subprocess.TimeoutExpired):
                ended = await asyncio.to_thread(agent.wait, delay_s) == 0
            agent.kill()
        if ended:
            break
        delay_s *= 1.25
    volume, staging = machine.volume(size_bytes=SIZES[fs_type]), machine.path("staging")
    await machine.node().stage(volume, staging, Filesystem(fs_type))
    (staging / "file").write_text("kept")
    assert len(machine.loops()) == 1
    assert machine.mounted() == [str(staging)]
    with run_agent(machine, fs_type) as agent:
        assert await asyncio.to_thread(agent.wait, 30) == 0
    assert (staging / "file").read_text() == "kept"


async def test_an_old_intent_never_costs_data(machine: Machine) -> None:
    """Node A died while formatting; B used the volume; it comes back to A, whose intent is still there."""
    volume, staging = machine.volume(), machine.path("staging")
    await machine.node().stage(volume, staging, EXT4)
    (staging / "file").write_text("precious")
    await machine.node().unstage(volume.meta.name, volume, staging)
    intents = machine.state / "formatting"
    intents.mkdir(parents=True, exist_ok=True)
    for uuid in (uuid_of(machine.files[volume.meta.name]), "11111111-2222-3333-4444-555555555555"):
        intent = intents / f"{volume.meta.name}.json"
        intent.write_text(f'{{"lvol": "lvol-v", "uuid": "{uuid}"}}')
        await machine.node().stage(volume, staging, EXT4)
        assert (staging / "file").read_text() == "precious"
        assert not intent.exists()
        await machine.node().unstage(volume.meta.name, volume, staging)


async def test_mkfs_that_fails_leaves_no_mount_and_may_be_repeated(machine: Machine) -> None:
    volume, staging = machine.volume(), machine.path("staging")
    with pytest.raises(CommandFailed):
        await machine.node().stage(volume, staging, Filesystem(mkfs_options=("-I", "100")))
    assert machine.loops() == machine.mounted() == []
    await machine.node().stage(volume, staging, EXT4)


async def test_an_intent_that_cannot_be_kept_leaves_nothing_behind(machine: Machine) -> None:
    volume, staging = machine.volume(), machine.path("staging")
    in_the_way = machine.state / "formatting" / f".{volume.meta.name}.new"
    in_the_way.mkdir(parents=True)  # stands for a full or read-only filesystem
    with pytest.raises(Unavailable, match="formatting"):
        await machine.node().stage(volume, staging, EXT4)
    assert machine.loops() == machine.mounted() == []
    assert machine.files[volume.meta.name].stat().st_blocks == 0
    in_the_way.rmdir()
    await machine.node().stage(volume, staging, EXT4)


async def test_a_failed_mkfs_and_raw_use_since(machine: Machine) -> None:
    """What a user of the raw device wrote is no remains of ours, though formatting was begun once."""
    volume, staging = machine.volume(), machine.path("staging")
    with pytest.raises(CommandFailed):
        await machine.node().stage(volume, staging, Filesystem(mkfs_options=("-I", "100")))
    await machine.node().stage(volume, staging, Block())
    data_at(5 * MIB)(machine.files[volume.meta.name])
    data_at(0)(machine.files[volume.meta.name])
    await machine.node().unstage(volume.meta.name, volume, staging)
    before = digest(machine.files[volume.meta.name])
    with pytest.raises(FailedPrecondition, match="unknown kind"):
        await machine.node().stage(volume, staging, EXT4)
    assert digest(machine.files[volume.meta.name]) == before


async def test_cancelled_stage_converges(machine: Machine) -> None:
    volume, staging, node = machine.volume(), machine.path("staging"), machine.node()
    for delay_s in (0.0, 0.01, 0.03, 0.06, 0.1, 0.15):
        with contextlib.suppress(TimeoutError, Busy):
            async with asyncio.timeout(delay_s):
                await node.stage(volume, staging, EXT4)
    await until_done(lambda: node.stage(volume, staging, EXT4))
    assert (len(machine.loops()), machine.mounted()) == (1, [str(staging)])
