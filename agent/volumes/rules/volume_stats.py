"""What a node tells of a published volume."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VolumeStats:
    """Use of a published volume. A raw block device has a total only."""

    total_bytes: int
    used_bytes: int = 0
    available_bytes: int = 0
    total_inodes: int = 0
    used_inodes: int = 0
    available_inodes: int = 0
    problem: str = ""
    """What is wrong with it on this machine, and the remedy; empty: nothing."""
    remark: str = ""
    """What is being done to it, while nothing is wrong."""
