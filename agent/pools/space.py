"""How full a pool may become: the thresholds, what each means, and what an operator can do. Pure, no I/O.

Thin volumes and snapshots promise more than a pool has. Once its last cluster is taken, writes that need a new one fail
(measured: what is allocated stays readable and writable), so the end has to be seen coming.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

REMEDY = "delete snapshots or volumes, or add a disk of this tier"


class Space(IntEnum):
    """How much of a pool is free; the larger, the worse."""

    AMPLE = 0
    LOW = 1
    """Below the warning threshold: reported, nothing is refused."""
    RESERVED = 2
    """Below the reserve, which is for what exists: no new volumes, growth or snapshots."""
    FULL = 3
    """No cluster is free: writes to thin volumes fail where nothing was written before."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Shares of a pool's size, 0 to 1. Below `warning` free the pool is LOW, below `reserve` RESERVED."""

    warning: float = 0.0
    reserve: float = 0.0

    def reserve_bytes(self, size_bytes: int) -> int:
        """Free bytes of a pool of `size_bytes` that no new promise may touch."""
        return int(size_bytes * self.reserve)

    def space(self, size_bytes: int, free_bytes: int, cluster_bytes: int) -> Space:
        """How full a pool of `size_bytes` with `free_bytes` is."""
        if free_bytes < cluster_bytes:
            return Space.FULL
        if free_bytes < self.reserve_bytes(size_bytes):
            return Space.RESERVED
        return Space.LOW if free_bytes < size_bytes * self.warning else Space.AMPLE


def describe(pool: str, space: Space, size_bytes: int, free_bytes: int) -> str:
    """The state of a pool that is short of space, for an operator, with what to do about it."""
    meaning = {
        Space.AMPLE: "has room",
        Space.LOW: "is nearly full",
        Space.RESERVED: "is nearly full and takes no new volumes, growth or snapshots",
        Space.FULL: "is full: writes to thin volumes fail where nothing was written before",
    }[space]
    state = f"pool {pool} {meaning}"
    percent = 100 * free_bytes / size_bytes if size_bytes else 0.0
    state += f" ({free_bytes >> 20} of {size_bytes >> 20} MiB free, {percent:.1f} %)"
    return state if space is Space.AMPLE else f"{state}; {REMEDY}"
