"""The filesystems that a volume may have, and the options that a StorageClass may give for them. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from agent.errors import InvalidArgument, shorten

SUPPORTED = ("ext4", "xfs", "btrfs")
"""The first one is the default."""

MIN_BYTES: Mapping[str, int] = {"xfs": 300 << 20, "btrfs": 109 << 20}
"""What mkfs refuses less of: mkfs.xfs since xfsprogs 5.19, mkfs.btrfs with metadata twice (its default)."""

_MKFS_OPTIONS: Mapping[str, frozenset[str]] = {
    "ext4": frozenset(("-b", "-E", "-G", "-I", "-i", "-J", "-L", "-m", "-N", "-O", "-T")),
    "xfs": frozenset(("-b", "-i", "-L", "-m", "-n", "-s")),
    "btrfs": frozenset(("--csum", "-d", "-L", "-m", "-n", "-O", "-R", "-s")),
}
"""Options with a value that a StorageClass may give. Nothing here can name another device or skip a check."""
_MKFS_FORBIDDEN: Mapping[tuple[str, str], frozenset[str]] = {
    ("ext4", "-E"): frozenset(("offset",)),
    ("ext4", "-J"): frozenset(("device",)),
    ("ext4", "-O"): frozenset(("journal_dev",)),
    ("xfs", "-m"): frozenset(("uuid",)),
    ("btrfs", "-O"): frozenset(("list-all",)),
    ("btrfs", "-R"): frozenset(("list-all",)),
}
"""Parts of a value that would make something else than a filesystem of this device that we know again."""
_MKFS_VALUE = re.compile(r"[A-Za-z0-9_.,=^:+-]{1,255}")
_MOUNT_FLAG = re.compile(r'[A-Za-z0-9_.,=:+@%/-]{1,255}|context="[A-Za-z0-9_.,:-]{1,255}"')
"""kubelet gives the SELinux label of a Pod as context="user:role:type:level", in quotes because levels have commas."""
_MOUNT_FORBIDDEN = frozenset(("bind", "rbind", "move", "remount", "loop", "offset", "sizelimit"))
_MOUNT_FORBIDDEN |= {"logdev", "rtdev", "journal_dev", "journal_path", "device", "subvol", "subvolid"}
"""What makes it another mount than ours, or adds another device."""
_MOUNT_FORBIDDEN_VALUES = frozenset(("errors=panic", "fatal_errors=panic"))
"""ext4's and btrfs's: one damaged volume would stop a machine that carries those of others."""
_ON_ERROR: Mapping[str, tuple[str, ...]] = {"ext4": ("errors=remount-ro", "errors=continue")}
"""What a filesystem may do on damage; the first unless the mount flags say another."""


def on_error(fs_type: str, mount_flags: Sequence[str]) -> list[str]:
    """The mount option that takes the place of what the superblock says, which whoever wrote to the device chose."""
    known = _ON_ERROR.get(fs_type, ())
    parts = {part for flag in mount_flags for part in flag.split(",")}
    return [] if not known or parts & set(known) else [known[0]]


def check_options(fs_type: str, mount_flags: Sequence[str], mkfs_options: Sequence[str]) -> None:
    """InvalidArgument for a filesystem we do not make, or an option that we do not pass on."""
    if fs_type not in SUPPORTED:
        raise InvalidArgument("fs_type", f"{shorten(fs_type)!r} is not supported", f"use {' or '.join(SUPPORTED)}")
    for flag in mount_flags:
        parts = flag.split(",")
        names = {part.partition("=")[0] for part in parts}
        if panics := sorted(_MOUNT_FORBIDDEN_VALUES & set(parts)):
            raise InvalidArgument(
                "mount_flags", f"{panics[0]} is not allowed: one damaged volume would stop the node", "leave it out"
            )
        if not _MOUNT_FLAG.fullmatch(flag) or names & _MOUNT_FORBIDDEN:
            raise InvalidArgument("mount_flags", f"{shorten(flag)!r} is not allowed")
    check_mkfs_options(fs_type, mkfs_options)


def check_mkfs_options(fs_type: str, mkfs_options: Sequence[str]) -> None:
    """InvalidArgument for an option of mkfs, or a value, that we do not pass on. `fs_type`: one of `SUPPORTED`."""
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
    for option, value in zip(options, values, strict=True):
        if not _MKFS_VALUE.fullmatch(value):
            raise InvalidArgument("mkfs_options", f"{shorten(value)!r} is not a value that can be passed on")
        parts = {part.lstrip("^").partition("=")[0] for part in value.split(",")}
        if forbidden := sorted(parts & _MKFS_FORBIDDEN.get((fs_type, option), frozenset())):
            raise InvalidArgument("mkfs_options", f"{option} {forbidden[0]} is not allowed")


def min_bytes(fs_type: str) -> int:
    """Size of the smallest device that such a filesystem fits on; 0: any volume is large enough."""
    return MIN_BYTES.get(fs_type, 0)
