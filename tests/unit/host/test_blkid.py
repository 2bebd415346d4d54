"""What counts as blank. Probing needs no privileges, so regular files stand for devices."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agent.errors import CommandFailed
from agent.host import blkid, content

MIB = 1 << 20
pytestmark = pytest.mark.skipif(shutil.which("blkid") is None, reason="blkid is not installed")


def sh(*argv: str | Path) -> None:
    subprocess.run(list(map(str, argv)), check=True, capture_output=True)


def sparse(path: Path, size_bytes: int = 64 * MIB) -> Path:
    with path.open("wb") as file:
        file.truncate(size_bytes)
    return path


@pytest.mark.parametrize("size_bytes", [4096, MIB, MIB + 512, 64 * MIB, 1 << 40])
async def test_zeroes_are_blank(tmp_path: Path, size_bytes: int) -> None:
    assert (await blkid.probe(sparse(tmp_path / "disk", size_bytes))).blank


@pytest.mark.parametrize("offset", [0, 511, 1024, MIB - 1, 32 * MIB, 63 * MIB, 64 * MIB - 1])
async def test_one_byte_is_not_blank(tmp_path: Path, offset: int) -> None:
    disk = sparse(tmp_path / "disk")
    with disk.open("r+b") as file:
        os.pwrite(file.fileno(), b"\1", offset)
    found = await blkid.probe(disk)
    assert not found.blank
    assert not found.recognized
    assert str(offset) in found.description


@pytest.mark.parametrize(
    ("argv", "fs_type", "described"),
    [
        (["mkfs.ext4", "-q", "-L", "mine"], "ext4", "ext4 filesystem labelled 'mine'"),
        (["mkfs.ext2", "-q"], "ext2", "ext2 filesystem"),
        (["mkswap"], "", "swap"),
        (["mkfs.xfs", "-q"], "xfs", "xfs filesystem"),
        (["mkfs.btrfs", "-q"], "btrfs", "btrfs filesystem"),
    ],
)
async def test_signatures(tmp_path: Path, argv: list[str], fs_type: str, described: str) -> None:
    if shutil.which(argv[0]) is None:
        pytest.skip(f"{argv[0]} is not installed")
    disk = sparse(tmp_path / "disk", 320 * MIB)
    sh(*argv, disk)
    found = await blkid.probe(disk)
    assert (found.blank, found.recognized, found.fs_type) == (False, True, fs_type)
    assert described in found.description


async def test_partition_table(tmp_path: Path) -> None:
    disk = sparse(tmp_path / "disk")
    with disk.open("r+b") as file:
        entry = bytes([0, 0, 2, 0, 0x83, 0, 0, 0]) + (2048).to_bytes(4, "little") + (4096).to_bytes(4, "little")
        os.pwrite(file.fileno(), entry, 446)
        os.pwrite(file.fileno(), b"\x55\xaa", 510)
    found = await blkid.probe(disk)
    assert (found.blank, found.recognized, found.fs_type) == (False, True, "")
    assert "dos partition table" in found.description


async def test_several_signatures_are_something(tmp_path: Path) -> None:
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed")
    disk = sparse(tmp_path / "disk")
    sh("mkfs.ext4", "-q", disk)
    with disk.open("r+b") as file:
        os.pwrite(file.fileno(), b"SWAPSPACE2", 4086)
        os.pwrite(file.fileno(), b"XFSB\0\0\x10\0", 0)
    found = await blkid.probe(disk)
    assert not found.blank


async def test_superblock_facts(tmp_path: Path) -> None:
    if shutil.which("tune2fs") is None:
        pytest.skip("e2fsprogs is not installed")
    disk = sparse(tmp_path / "disk")
    sh("mkfs.ext4", "-q", disk)
    fresh = await blkid.probe(disk)
    assert (fresh.never_mounted, fresh.filesystem_bytes) == (True, 64 * MIB)
    sh("tune2fs", "-C", "1", disk)
    assert not (await blkid.probe(disk)).never_mounted


async def test_unreadable_is_an_error_not_blank(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed):
        await blkid.probe(tmp_path / "absent")
    with pytest.raises(CommandFailed):
        await blkid.probe(tmp_path)


async def test_cleared_ends_of_an_otherwise_empty_disk_are_blank(tmp_path: Path) -> None:
    disk = sparse(tmp_path / "disk")
    with disk.open("r+b") as file:
        os.pwrite(file.fileno(), b"x" * 9000, 0)
        os.pwrite(file.fileno(), b"x" * 9000, 64 * MIB - 9000)
    await blkid.clear_ends(disk)
    assert (await blkid.probe(disk)).blank
    assert disk.stat().st_size == 64 * MIB


async def test_a_reason_is_told_in_plain_words(tmp_path: Path) -> None:
    """What the system refuses is said as it says it, without the names of Python."""
    argv = [sys.executable, str(Path(content.__file__)), "look", str(tmp_path)]
    done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "Is a directory\n")
