"""Filesystems on a block device: make, check, grow, measure."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.errors import CommandFailed, FailedPrecondition, InvalidArgument, shorten
from agent.host import device as devices
from agent.host import process

MKFS_TIMEOUT_S = 300.0
CHECK_TIMEOUT_S = 600.0
GROW_TIMEOUT_S = 300.0
XFS_MIN_BYTES = 300 << 20
"""mkfs.xfs refuses less since xfsprogs 5.19."""

SUPPORTED = ("ext4", "xfs")

_MKFS_OPTIONS: Mapping[str, frozenset[str]] = {
    "ext4": frozenset(("-b", "-E", "-G", "-I", "-i", "-J", "-L", "-m", "-N", "-O", "-T")),
    "xfs": frozenset(("-b", "-i", "-L", "-m", "-n", "-s")),
}
"""Options with a value that a StorageClass may give. Nothing here can name another device or skip a check."""
_MKFS_VALUE = re.compile(r"[A-Za-z0-9_.,=^:+-]{1,255}")
_MOUNT_FLAG = re.compile(r"[A-Za-z0-9_.,=:+@%/-]{1,255}")
_MOUNT_FORBIDDEN = frozenset(("bind", "rbind", "move", "remount", "loop", "offset", "sizelimit", "logdev", "rtdev"))
_CHECK_CORRECTED = 1


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes and inodes of a mounted filesystem. Available: for unprivileged users."""

    total_bytes: int
    used_bytes: int
    available_bytes: int
    total_inodes: int
    used_inodes: int
    available_inodes: int


def check_options(fs_type: str, mount_flags: Sequence[str], mkfs_options: Sequence[str]) -> None:
    """InvalidArgument for a filesystem we do not make, or an option that we do not pass on."""
    if fs_type not in SUPPORTED:
        raise InvalidArgument("fs_type", f"{shorten(fs_type)!r} is not supported", f"use {' or '.join(SUPPORTED)}")
    for flag in mount_flags:
        names = {part.partition("=")[0] for part in flag.split(",")}
        if not _MOUNT_FLAG.fullmatch(flag) or names & _MOUNT_FORBIDDEN:
            raise InvalidArgument("mount_flags", f"{shorten(flag)!r} is not allowed")
    allowed = _MKFS_OPTIONS[fs_type]
    options, values = mkfs_options[::2], mkfs_options[1::2]
    for option in options:
        if option not in allowed:
            known = ", ".join(sorted(allowed))
            raise InvalidArgument(
                "mkfs_options", f"{shorten(option)!r} is not allowed", f"option and value of: {known}"
            )
    if len(options) != len(values):
        raise InvalidArgument("mkfs_options", f"{options[-1]} has no value")
    for value in values:
        if not _MKFS_VALUE.fullmatch(value):
            raise InvalidArgument("mkfs_options", f"{shorten(value)!r} is not a value that can be passed on")


async def make(device: Path, fs_type: str, uuid: str, options: Sequence[str] = ()) -> None:
    """Make a filesystem with the given UUID on a device that the caller has proven blank.

    The programs are never forced (-F, -f): they look once more themselves and refuse what they recognize.
    """
    if fs_type == "ext4":
        # No reserved blocks: this is nobody's root filesystem. Lazy: tables are zeroed later, while it is mounted.
        extended = "nodiscard,lazy_itable_init=1,lazy_journal_init=1"
        argv = ["mkfs.ext4", "-q", "-m", "0", "-U", uuid, "-E", extended, *options, str(device)]
    else:
        if devices.size_bytes(device) < XFS_MIN_BYTES:
            raise FailedPrecondition(
                f"xfs needs a volume of at least {XFS_MIN_BYTES >> 20} MiB: use ext4 or a larger one"
            )
        argv = ["mkfs.xfs", "-q", "-K", "-m", f"uuid={uuid}", *options, str(device)]
    await process.run(argv, timeout_s=MKFS_TIMEOUT_S)


async def check(device: Path, fs_type: str, *, full: bool = False) -> None:
    """Replay the journal and repair what is safe to repair, as at boot. xfs does it at mount.

    FailedPrecondition when a person has to look at it.
    """
    if fs_type != "ext4":
        return
    argv = ["e2fsck", "-p", *(["-f"] if full else []), str(device)]
    done = await process.run(argv, timeout_s=CHECK_TIMEOUT_S, ok_codes=range(256))
    if done.code not in (0, _CHECK_CORRECTED):
        said = (done.stdout + done.stderr).strip()[-1000:]
        raise FailedPrecondition(f"{device} needs `e2fsck` by hand before it can be mounted: {said}")


def can_grow_mounted(fs_type: str) -> bool:
    """Whether this process may grow a mounted filesystem: for ext4 the kernel asks for CAP_SYS_RESOURCE."""
    return fs_type != "ext4" or devices.has_capability(devices.CAP_SYS_RESOURCE)


async def grow_unmounted(device: Path) -> None:
    """Grow an ext4 filesystem that is nowhere mounted. It is checked in full first, as resize2fs demands."""
    await check(device, "ext4", full=True)
    await process.run(["resize2fs", str(device)], timeout_s=GROW_TIMEOUT_S)


async def grow(device: Path, fs_type: str, mounted_at: Path) -> None:
    """Grow a mounted filesystem to the size of its device; as large already: nothing happens.

    FailedPrecondition when this process may not (`can_grow_mounted`).
    """
    argv = ["resize2fs", str(device)] if fs_type == "ext4" else ["xfs_growfs", "-d", str(mounted_at)]
    try:
        await process.run(argv, timeout_s=GROW_TIMEOUT_S)
    except CommandFailed as error:  # tried first: one that is large enough needs no permission
        if can_grow_mounted(fs_type):
            raise
        raise FailedPrecondition(
            "growing ext4 while it is mounted needs the capability SYS_RESOURCE, which this agent does not have: "
            "grant it, or the filesystem grows when the volume is staged next"
        ) from error


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
