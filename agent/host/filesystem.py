"""Filesystems on a block device: make, check, grow, measure."""

from __future__ import annotations

import fcntl
import os
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.errors import CommandFailed, FailedPrecondition, Unavailable
from agent.host import blkid, holders, process
from agent.host import device as devices
from agent.model import filesystems

EXT4_JOURNAL_BYTES, EXT4_TINY_BYTES, EXT4_SMALL_BYTES = 8 << 20, 16 << 20, 512 << 20
"""Sizes from which ext4 with blocks of 4 KiB has a journal, and room for its growth; mke2fs's own limit for "small"."""

_CHECK_CORRECTED = 1
_CHECK_PROGRESS = re.compile(r"\s*([1-5]) (\d+) (\d+) /")

Watch = Callable[[str], None]
"""Is told how far something is, in words."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes and inodes of a mounted filesystem. Available: for unprivileged users."""

    total_bytes: int
    used_bytes: int
    available_bytes: int
    total_inodes: int
    used_inodes: int
    available_inodes: int


async def make(device: Path, fs_type: str, uuid: str, options: Sequence[str] = ()) -> None:
    """Make a filesystem with the given UUID on a device that the caller has proven blank.

    The programs are never forced (-F, -f): they look once more themselves and refuse what they recognize.
    Unavailable while somebody else has the device.
    """
    least, size_bytes = filesystems.min_bytes(fs_type), devices.size_bytes(device)
    if size_bytes < least:
        raise FailedPrecondition(f"{fs_type} needs a volume of at least {least >> 20} MiB: use ext4 or a larger one")
    try:
        await process.run([*_mkfs(fs_type, uuid, options, size_bytes), str(device)], timeout_s=None)
    except CommandFailed:
        await _refuse_held(device)  # by an earlier one that has been killed and has not ended, for instance
        raise


def _mkfs(fs_type: str, uuid: str, options: Sequence[str], size_bytes: int) -> list[str]:
    if fs_type == "btrfs":
        return ["mkfs.btrfs", "-q", "-K", "-U", uuid, *options]
    if fs_type == "xfs":
        return ["mkfs.xfs", "-q", "-K", "-m", f"uuid={uuid}", *options]
    # No reserved blocks: this is nobody's root filesystem. Lazy: tables are zeroed later, while it is mounted.
    extended = ["nodiscard,lazy_itable_init=1,lazy_journal_init=1"]
    others = []
    for option, value in zip(options[::2], options[1::2], strict=True):
        if option == "-E":  # of several mkfs.ext4 takes the last one only
            extended.append(value)
        else:
            others += [option, value]
    layout = _ext4_layout(size_bytes, frozenset(options[::2]))
    return ["mkfs.ext4", "-q", "-m", "0", "-U", uuid, "-E", ",".join(extended), *layout, *others]


def _ext4_layout(size_bytes: int, chosen: frozenset[str]) -> list[str]:
    """Options that let it grow to 16 TiB, where none of those `chosen` is for that.

    What mke2fs.conf(5) has for less than 512 MiB cannot: blocks of 1 KiB end at some TiB, and an inode for each 4 KiB
    at 16 TiB, where there would be more than 2^32 inodes. Blocks of 4 KiB need 8 MiB: with less there is no journal.
    """
    layout: list[str] = []
    if "-T" in chosen or size_bytes < EXT4_JOURNAL_BYTES:
        return layout
    if "-b" not in chosen:
        layout += ["-b", "4096"]
    if "-I" not in chosen:
        layout += ["-I", "256"]
    if size_bytes < EXT4_SMALL_BYTES and not chosen & {"-i", "-N"}:
        layout += ["-i", "8192"]
    # So small that no room is kept for more group descriptors: resize2fs takes the inode for them for damaged.
    if size_bytes < EXT4_TINY_BYTES and "-O" not in chosen:
        layout += ["-O", "^resize_inode"]
    return layout


async def check(device: Path, fs_type: str, watch: Watch, *, full: bool = False) -> None:
    """Replay the journal and repair what is safe to repair, as at boot. xfs and btrfs do it at mount.

    `watch` is told how far it is. FailedPrecondition when a person has to look at it, Unavailable while somebody else
    has the device (an earlier check that has not ended, for instance).
    """
    if fs_type != "ext4":
        return
    argv = ["e2fsck", "-p", "-C", "1", *(["-f"] if full else []), str(device)]
    done = await process.run(argv, timeout_s=None, ok_codes=range(256), watch=lambda line: _is_progress(line, watch))
    if done.code in (0, _CHECK_CORRECTED):
        return
    await _refuse_held(device)
    said = (done.stdout + done.stderr).strip()[-1000:]
    raise FailedPrecondition(f"{device} needs `e2fsck` by hand before it can be mounted: {said}")


async def _refuse_held(device: Path) -> None:
    if await blkid.is_held(device):
        raise Unavailable(holders.describe(device) or f"{device} is in use; repeat the call")


def _is_progress(line: str, watch: Watch) -> bool:
    """Lines of `e2fsck -C`: pass, position, last position, device."""
    if (found := _CHECK_PROGRESS.match(line)) is None:
        return False
    number, position, end = map(int, found.groups())
    watch(f"pass {number} of 5, {100 * position // max(1, end)} %")
    return True


def can_grow_mounted(fs_type: str) -> bool:
    """Whether this process may grow a mounted filesystem: for ext4 the kernel asks for CAP_SYS_RESOURCE."""
    return fs_type != "ext4" or devices.has_capability(devices.CAP_SYS_RESOURCE)


async def grow_unmounted(device: Path, watch: Watch) -> None:
    """Grow an ext4 filesystem that is nowhere mounted. It is checked in full first, as resize2fs demands."""
    await check(device, "ext4", watch, full=True)
    await process.run(["resize2fs", str(device)], timeout_s=None)


async def grow(device: Path, fs_type: str, mounted_at: Path) -> None:
    """Grow a mounted filesystem to the size of its device; as large already: nothing happens.

    FailedPrecondition when this process may not (`can_grow_mounted`).
    """
    argv = {
        "ext4": ["resize2fs", str(device)],
        "xfs": ["xfs_growfs", "-d", str(mounted_at)],
        "btrfs": ["btrfs", "filesystem", "resize", "max", str(mounted_at)],
    }[fs_type]
    try:
        await process.run(argv, timeout_s=None)
    except CommandFailed as error:  # tried first: one that is large enough needs no permission
        if can_grow_mounted(fs_type):
            raise
        raise FailedPrecondition(
            "growing ext4 while it is mounted needs the capability SYS_RESOURCE, which this agent does not have: "
            "grant it, or the filesystem grows when the volume is staged next"
        ) from error


async def mounted_bytes(device: Path, fs_type: str, mounted_at: Path) -> int:
    """The size of a mounted filesystem, what it needs itself included; 0 when it does not tell (it has shut down).

    Asked of the filesystem: the superblock on the device of a mounted xfs or btrfs is as it was written last. That of
    ext4 is where the kernel changes it.
    """
    if fs_type not in _GEOMETRY:
        return await blkid.filesystem_bytes(device)
    request, bytes_total = _GEOMETRY[fs_type]
    answer = bytearray(_BTRFS_FIRST_DEVICE.ljust(request >> 16 & 0x3FFF, b"\0"))
    try:
        root = os.open(mounted_at, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(root, request, answer)  # from memory, without I/O
        finally:
            os.close(root)
    except OSError:
        return 0
    return bytes_total(bytes(answer))


def _xfs_bytes(answer: bytes) -> int:
    """struct xfs_fsop_geom_v1: blocksize first, datablocks after eight words."""
    return int(struct.unpack_from("=I", answer)[0] * struct.unpack_from("=Q", answer, 32)[0])


def _btrfs_bytes(answer: bytes) -> int:
    """struct btrfs_ioctl_dev_info_args: devid, uuid[16], bytes_used, total_bytes."""
    return int(struct.unpack_from("=Q", answer, 32)[0])


_BTRFS_FIRST_DEVICE = struct.pack("=Q", 1)
_GEOMETRY: Mapping[str, tuple[int, Callable[[bytes], int]]] = {
    "xfs": (0x80705864, _xfs_bytes),  # XFS_IOC_FSGEOMETRY_V1, linux/fs/xfs/libxfs/xfs_fs.h
    "btrfs": (0xD000941E, _btrfs_bytes),  # BTRFS_IOC_DEV_INFO, linux/btrfs.h
}


def usage(path: Path) -> Usage:
    """statvfs(2) of a mounted filesystem."""
    found = os.statvfs(path)
    return Usage(
        total_bytes=found.f_blocks * found.f_frsize,
        used_bytes=(found.f_blocks - found.f_bfree) * found.f_frsize,
        available_bytes=found.f_bavail * found.f_frsize,
        total_inodes=found.f_files,
        used_inodes=found.f_files - found.f_ffree,
        available_inodes=found.f_favail,
    )
