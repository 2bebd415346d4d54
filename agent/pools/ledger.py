"""Placement: which disk a volume goes to, and the ledger of what is promised on each pool. Pure, no I/O.

A thin volume counts with its size divided by the overprovision ratio, a thick one in full; a pool is never promised
beyond its size, a thick volume needs its clusters free now, and a pool's reserve is never promised anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from agent.errors import ResourceExhausted
from agent.model import POOL_PREFIX, Provisioning, Tier
from agent.pools.space import Space, Thresholds, describe
from agent.pools.topology import EVERYWHERE, Segment


@dataclass(slots=True)
class Pool:
    """A pool that can take volumes. `promised_bytes` is the weight of all volumes placed on it."""

    disk: str
    node: str
    tier: Tier
    size_bytes: int
    free_bytes: int
    cluster_bytes: int
    zone: str = ""
    promised_bytes: float = 0.0
    accepting: bool = True
    """Whether new volumes may be placed on it; those that are there may grow."""
    why_not: str = ""
    """Why not, and the remedy, where that is worth telling who asks for a volume."""
    zeroing: str = ""
    """How far the zeroing of its free space is, which is given out as that proceeds; empty: all is zeroed."""

    def round_up(self, size_bytes: int) -> int:
        """`size_bytes` in whole clusters."""
        return -(-size_bytes // self.cluster_bytes) * self.cluster_bytes


@dataclass(frozen=True, slots=True)
class Capacity:
    """What could be created now, in bytes: all together, as one volume, and the least a volume takes (0: nothing can).

    A volume lies on one disk, so `largest_bytes` is less than `total_bytes` where there are several.
    """

    total_bytes: int = 0
    largest_bytes: int = 0
    smallest_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Reservation:
    disk: str
    size_bytes: int
    provisioning: Provisioning
    serial: int


@dataclass(slots=True)
class _Promised:
    """Bytes of the volumes on one disk by kind: whole numbers, so that no rounding adds up."""

    thin: int = 0
    thick: int = 0


class Ledger:
    """Pools and what every volume weighs on them. Reserving is synchronous, so two creations cannot share room."""

    def __init__(self, overprovision_ratio: float, thresholds: Thresholds = Thresholds()) -> None:  # noqa: B008 - frozen
        self._ratio = overprovision_ratio
        self._thresholds = thresholds
        self._pools: dict[str, Pool] = {}
        self._reserved: dict[str, _Reservation] = {}
        self._promised: dict[str, _Promised] = {}
        self._serial = 0

    def pool(self, disk: str) -> Pool | None:
        return self._pools.get(disk)

    def pools(self) -> list[Pool]:
        return list(self._pools.values())

    @property
    def now(self) -> int:
        """A point in the order of reservations: to be taken before asking a target for its free space."""
        return self._serial

    def set_pool(self, pool: Pool, as_of: int | None = None) -> None:
        """Add or refresh a pool; what volumes weigh on it is kept.

        `pool.free_bytes` is what was free at `as_of` (see `now`): thick volumes reserved since then come off it.
        """
        self._weigh(pool)
        if as_of is not None and as_of != self._serial:
            later = (
                each.size_bytes
                for each in self._reserved.values()
                if each.serial > as_of and each.disk == pool.disk and each.provisioning is Provisioning.THICK
            )
            pool.free_bytes = max(0, pool.free_bytes - sum(later))
        self._pools[pool.disk] = pool

    def reserved_on(self, disk: str) -> list[str]:
        """Everything that weighs on `disk`."""
        return [name for name, each in self._reserved.items() if each.disk == disk]

    def sizes_on(self, disk: str) -> list[int]:
        """The bytes of everything that weighs on `disk`."""
        return [each.size_bytes for each in self._reserved.values() if each.disk == disk]

    def remove_pool(self, disk: str) -> None:
        self._pools.pop(disk, None)

    def reserve(self, volume: str, disk: str, size_bytes: int, provisioning: Provisioning) -> None:
        """Count `volume` on `disk`, in place of what it weighed before."""
        self.release(volume)
        self._serial += 1
        self._reserved[volume] = _Reservation(disk, size_bytes, provisioning, self._serial)
        self._count(disk, size_bytes, provisioning)
        pool = self._pools.get(disk)
        if pool and provisioning is Provisioning.THICK:
            pool.free_bytes = max(0, pool.free_bytes - size_bytes)

    def release(self, volume: str) -> None:
        """Forget `volume`."""
        entry = self._reserved.pop(volume, None)
        if entry is None:
            return
        self._count(entry.disk, -entry.size_bytes, entry.provisioning)
        pool = self._pools.get(entry.disk)
        if pool and entry.provisioning is Provisioning.THICK:
            pool.free_bytes = min(pool.size_bytes, pool.free_bytes + entry.size_bytes)

    def space(self, pool: Pool) -> Space:
        """How full `pool` is."""
        return self._thresholds.space(pool.size_bytes, pool.free_bytes, pool.cluster_bytes)

    def shortage(self, pool: Pool) -> str:
        """Why `pool` has too little free, and what to do about it; empty when it has enough."""
        name, space = POOL_PREFIX + pool.disk, self.space(pool)
        if space is Space.AMPLE:
            return ""
        if pool.zeroing:
            return f"pool {name} gives its space out as it is zeroed ({pool.zeroing}); it goes on by itself"
        return describe(name, space, pool.size_bytes, pool.free_bytes)

    def require_space(self, disk: str) -> None:
        """Raise ResourceExhausted when the pool on `disk` is too full for new volumes, growth or snapshots."""
        pool = self._pools.get(disk)
        if pool is not None and self.space(pool) >= Space.RESERVED:
            raise ResourceExhausted(self.shortage(pool))

    def room(self, pool: Pool, provisioning: Provisioning) -> int:
        """Bytes of a volume of that kind that `pool` could still take."""
        if self.space(pool) >= Space.RESERVED:
            return 0
        promised = self._promised.get(pool.disk, _Promised())
        if provisioning is Provisioning.THICK:
            spare = pool.free_bytes - self._thresholds.reserve_bytes(pool.size_bytes)
            ceiling = self.ceiling(pool, provisioning)
            room = min(spare, ceiling - promised.thick - math.ceil(promised.thin / self._ratio))
        else:
            room = int((pool.size_bytes - promised.thick) * self._ratio) - promised.thin
        return max(0, room // pool.cluster_bytes * pool.cluster_bytes)

    def ceiling(self, pool: Pool, provisioning: Provisioning) -> int:
        """Bytes of a volume of that kind that `pool` could take if it were empty."""
        if provisioning is Provisioning.THICK:
            return pool.size_bytes - self._thresholds.reserve_bytes(pool.size_bytes)
        return int(pool.size_bytes * self._ratio)

    def capacity(self, tier: Tier, provisioning: Provisioning, segment: Segment = EVERYWHERE) -> Capacity:
        """What could be created now of that tier in `segment`."""
        pools = [
            pool
            for pool in self._pools.values()
            if pool.accepting and pool.tier is tier and segment.has(pool.node, pool.zone)
        ]
        rooms = [self.room(pool, provisioning) for pool in pools]
        return Capacity(
            total_bytes=sum(rooms),
            largest_bytes=max(rooms, default=0),
            smallest_bytes=min((pool.cluster_bytes for pool in pools), default=0),
        )

    def can_grow(self, volume: str, size_bytes: int) -> bool:
        """Whether `volume` could become `size_bytes` large where it is."""
        entry = self._reserved[volume]
        pool = self._pools.get(entry.disk)
        return pool is not None and size_bytes - entry.size_bytes <= self.room(pool, entry.provisioning)

    def _count(self, disk: str, size_bytes: int, provisioning: Provisioning) -> None:
        promised = self._promised.setdefault(disk, _Promised())
        if provisioning is Provisioning.THICK:
            promised.thick += size_bytes
        else:
            promised.thin += size_bytes
        if pool := self._pools.get(disk):
            self._weigh(pool)

    def _weigh(self, pool: Pool) -> None:
        promised = self._promised.get(pool.disk, _Promised())
        pool.promised_bytes = promised.thick + promised.thin / self._ratio
