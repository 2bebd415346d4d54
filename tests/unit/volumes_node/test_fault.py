"""A filesystem that the kernel gave up: told as such, and well again once it is staged anew."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from agent.host.mount import parse
from agent.volumes.attach import fault
from agent.volumes.rules.modes import Filesystem

from .conftest import SIZES, Machine

BREAK = {"ext4": ["mount", "-o", "remount,abort"], "xfs": ["xfs_io", "-x", "-c", "shutdown -f"]}


@pytest.mark.root
@pytest.mark.parametrize("fs_type", sorted(BREAK))
async def test_broken_and_staged_again(machine: Machine, fs_type: str) -> None:
    for program in (f"mkfs.{fs_type}", BREAK[fs_type][0]):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    node, mode = machine.node(), Filesystem(fs_type)
    volume = machine.volume(size_bytes=SIZES[fs_type])
    staging, target, reader = machine.path("staging"), machine.mounts / "target", machine.mounts / "reader"
    await node.stage(volume, staging, mode)
    await node.publish(volume, staging, target, mode, readonly=False)
    await node.publish(volume, staging, reader, mode, readonly=True)
    (target / "file").write_text("kept")
    os.sync()
    assert [(await node.stats(volume, each)).problem for each in (staging, target, reader)] == ["", "", ""]

    await asyncio.to_thread(subprocess.run, [*BREAK[fs_type], str(staging)], check=True, capture_output=True)
    with pytest.raises(OSError, match=r"Read-only|Input/output"):
        (target / "another").write_text("lost")
    for each in (staging, target, reader):
        stats = await node.stats(volume, each)
        assert "after an error; remove the cause" in stats.problem
        assert stats.total_bytes > 0

    for published in (target, reader):
        await node.unpublish(volume.meta.name, published)
    await node.unstage(volume.meta.name, volume, staging)
    await node.stage(volume, staging, mode)
    await node.publish(volume, staging, target, mode, readonly=False)
    assert (await node.stats(volume, target)).problem == ""
    assert (target / "file").read_text() == "kept"
    (target / "another").write_text("written")


@pytest.mark.root
async def test_a_volume_for_reading_is_well(machine: Machine) -> None:
    node, mode = machine.node(), Filesystem("ext4")
    staging, target = machine.path("staging"), machine.mounts / "target"
    await node.stage(machine.volume(), staging, mode)
    await node.unstage(machine.volume().meta.name, machine.volume(), staging)
    volume = machine.volume(readonly=True)
    await node.stage(volume, staging, mode)
    await node.publish(volume, staging, target, mode, readonly=False)
    assert [(await node.stats(volume, each)).problem for each in (staging, target)] == ["", ""]


@pytest.mark.parametrize(
    ("options", "of_filesystem", "broken"),
    [
        ("rw,relatime", "rw", False),
        ("rw,relatime", "ro", True),
        ("rw,relatime", "rw,abort,emergency_ro", True),
        ("ro,relatime", "ro", False),
        ("ro,relatime", "rw", False),
    ],
)
def test_what_mountinfo_tells(tmp_path: Path, options: str, of_filesystem: str, broken: bool) -> None:
    mounts = parse(f"45 27 7:4 / {tmp_path} {options} - ext4 /dev/loop4 {of_filesystem}")
    assert bool(fault.of_filesystem(mounts, tmp_path)) is broken
