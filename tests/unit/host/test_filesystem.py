"""Options from a StorageClass: what may reach mkfs and mount."""

from __future__ import annotations

import pytest

from agent.errors import InvalidArgument
from agent.model import filesystems


@pytest.mark.parametrize(
    ("fs_type", "flags", "options"),
    [
        ("ext4", (), ()),
        ("ext4", ("noatime", "commit=30", "data=ordered,discard"), ("-b", "4096", "-O", "^metadata_csum")),
        ("ext4", (), ("-E", "stride=16", "-E", "stripe_width=64", "-J", "size=8")),
        ("btrfs", ("compress=zstd:3", "discard=async"), ("-m", "single", "--csum", "xxhash", "-O", "^no-holes")),
        ("ext4", ('context="system_u:object_r:container_file_t:s0:c10,c20"',), ()),
        ("xfs", ("inode64", "logbsize=256k"), ("-m", "reflink=1,bigtime=1", "-i", "size=1024")),
    ],
)
def test_allowed(fs_type: str, flags: tuple[str, ...], options: tuple[str, ...]) -> None:
    filesystems.check_options(fs_type, flags, options)


@pytest.mark.parametrize(
    ("fs_type", "flags", "options", "field"),
    [
        ("ntfs", (), (), "fs_type"),
        ("n" * 10_000, (), (), "fs_type"),
        ("", (), (), "fs_type"),
        ("../ext4", (), (), "fs_type"),
        ("ext4", ("bind",), (), "mount_flags"),
        ("ext4", ("noatime,remount",), (), "mount_flags"),
        ("xfs", ("logdev=/dev/sda",), (), "mount_flags"),
        ("ext4", ("",), (), "mount_flags"),
        ("ext4", ("a b",), (), "mount_flags"),
        ("ext4", ("x" * 10_000,), (), "mount_flags"),
        ("ext4", ('context="a"b"',), (), "mount_flags"),
        ("ext4", ('data="ordered"',), (), "mount_flags"),
        ("ext4", (), ("/dev/sda",), "mkfs_options"),
        ("ext4", (), ("-F", "1"), "mkfs_options"),
        ("ext4", (), ("-b",), "mkfs_options"),
        ("ext4", (), ("-b", "/dev/sda"), "mkfs_options"),
        ("ext4", (), ("-b", "-F /dev/sda"), "mkfs_options"),
        ("xfs", (), ("-f", "1"), "mkfs_options"),
        ("xfs", (), ("-l", "logdev=sda"), "mkfs_options"),
        ("xfs", (), ("-d", "name=sda"), "mkfs_options"),
        ("xfs", (), ("-m", "crc=1,uuid=0"), "mkfs_options"),
        ("ext4", (), ("-E", "stride=16,offset=4096"), "mkfs_options"),
        ("ext4", (), ("-J", "device=LABEL=log"), "mkfs_options"),
        ("ext4", (), ("-O", "^quota,journal_dev"), "mkfs_options"),
        ("btrfs", (), ("-f", "1"), "mkfs_options"),
        ("btrfs", (), ("-r", "etc"), "mkfs_options"),
        ("btrfs", (), ("-O", "list-all"), "mkfs_options"),
        ("btrfs", ("device=/dev/sda",), (), "mount_flags"),
        ("btrfs", ("subvol=other",), (), "mount_flags"),
    ],
    ids=range(29),
)
def test_refused(fs_type: str, flags: tuple[str, ...], options: tuple[str, ...], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        filesystems.check_options(fs_type, flags, options)
    assert caught.value.field == field
    assert len(str(caught.value)) < 400
