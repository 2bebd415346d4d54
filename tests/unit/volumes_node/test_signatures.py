"""What a user writes to files is never taken for what the device is; what no filesystem of ours covers still is."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest

from agent.errors import FailedPrecondition
from agent.volumes.rules.modes import Block, Filesystem

from .conftest import MIB, SIZES, Machine, have
from .signatures import SIGNATURES

pytestmark = pytest.mark.root
BLOCK = 1024
STAMP = b"block of a file\0"


def believed(file: Path) -> str:
    """What libblkid says that it is; empty: several things at once, or nothing."""
    argv = ["blkid", "-p", "-s", "TYPE", "-o", "value", str(file)]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()


def fill(path: Path) -> None:
    """Let the file have all the room there is; each block of it says which one it is."""
    index = 0
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                blocks = range(index, index + 256)
                file.write(b"".join((STAMP + struct.pack("<Q", block)).ljust(BLOCK, b"\xff") for block in blocks))
                index += 256
        except OSError:
            os.fsync(file)


def layout(device: Path) -> dict[int, int]:
    """By the index of each block of the device that is one of the file: which one of the file it is."""
    found = {}
    with device.open("rb") as file:
        while chunk := file.read(MIB):
            start = (file.tell() - len(chunk)) // BLOCK
            for index in range(len(chunk) // BLOCK):
                if chunk.startswith(STAMP, index * BLOCK):
                    found[start + index] = struct.unpack_from("<Q", chunk, index * BLOCK + len(STAMP))[0]
    return found


def write_through_file(path: Path, blocks: dict[int, int], wanted: list[tuple[int, bytes]]) -> int:
    """Write into the file what is to be at these places of its device; returns how many places are the file's."""
    written = 0
    with path.open("r+b", buffering=0) as file:
        for offset, data in wanted:
            index = offset // BLOCK
            if index in blocks and (offset + len(data) - 1) // BLOCK == index:
                os.pwrite(file.fileno(), data, blocks[index] * BLOCK + offset % BLOCK)
                written += 1
        os.fsync(file)
    return written


DOUBTED = ("jmicron_raid_member", "linux_raid_member 1.0", "zfs_member")
"""What blkid of util-linux 2.41 does not believe without a right checksum or a second copy, as 2.38 does."""


@pytest.mark.parametrize("name", SIGNATURES)
async def test_the_table_is_true(machine: Machine, name: str) -> None:
    """Each is believed on a device that has nothing else, which is why such a device is not formatted."""
    volume, staging = machine.volume(), machine.path("staging")
    file = machine.files[volume.meta.name]
    with file.open("r+b") as opened:
        for offset, data in SIGNATURES[name](64 * MIB):
            opened.seek(offset)
            opened.write(data)
    kind = believed(file)
    assert kind == name.split()[0] or (kind == "" and name in DOUBTED)
    before = file.read_bytes()
    for fs_type in ("ext4", "xfs", "btrfs"):
        with pytest.raises(FailedPrecondition, match=kind or "data of an unknown kind"):
            await machine.node().stage(volume, staging, Filesystem(fs_type))
    assert file.read_bytes() == before


@pytest.mark.parametrize("fs_type", SIZES)
async def test_data_of_files_that_look_like_signatures(machine: Machine, fs_type: str) -> None:
    if reason := have(f"mkfs.{fs_type}"):
        pytest.skip(reason)
    size = SIZES[fs_type]
    volume, staging = machine.volume("v", size), machine.path("staging")
    # Plain data in place (btrfs), and files up to the last block of the device (ext4).
    flags = ("nodatacow",) if fs_type == "btrfs" else ()
    mode = Filesystem(fs_type, flags, ("-b", "1024") if fs_type == "ext4" else ())
    node = machine.node()
    await node.stage(volume, staging, mode)
    fill(staging / "data")
    await node.unstage(volume.meta.name, volume, staging)
    blocks = layout(machine.files[volume.meta.name])
    await node.stage(volume, staging, mode)
    written, fooled = [], []
    for name, signature in SIGNATURES.items():
        places = signature(size)
        if not write_through_file(staging / "data", blocks, places):
            continue
        written.append(name)
        await node.unstage(volume.meta.name, volume, staging)
        if believed(machine.files[volume.meta.name]) != fs_type:
            fooled.append(name)
        await node.stage(volume, staging, mode)
        assert (staging / "data").exists()
        await node.unstage(volume.meta.name, volume, staging)
        with pytest.raises(FailedPrecondition, match="left as it is"):
            await node.stage(volume, staging, Filesystem("btrfs" if fs_type == "xfs" else "xfs"))
        await node.stage(volume, staging, mode)
        write_through_file(staging / "data", blocks, [(offset, bytes(len(data))) for offset, data in places])
    assert len(fooled) > 2, f"libblkid was fooled by {fooled} of {written} only: the test shows little"


async def test_what_a_raw_user_wrote_is_never_formatted(machine: Machine) -> None:
    volume, staging, node = machine.volume(), machine.path("staging"), machine.node()
    await node.stage(volume, staging, Block())
    await node.unstage(volume.meta.name, volume, staging)
    with machine.files[volume.meta.name].open("r+b") as file:
        file.seek(1024 + 56)
        file.write(b"\x53\xef")  # the magic of ext4 without a valid superblock around it
    for fs_type in ("ext4", "xfs"):
        with pytest.raises(FailedPrecondition, match="left as it is"):
            await node.stage(volume, staging, Filesystem(fs_type))
