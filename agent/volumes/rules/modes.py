"""How a volume is used: as a filesystem or as a raw block device."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Filesystem:
    """Access through a mounted filesystem: which one, and options from the StorageClass."""

    fs_type: str = "ext4"
    mount_flags: tuple[str, ...] = ()
    mkfs_options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Block:
    """Access to the raw block device."""


VolumeMode = Filesystem | Block
