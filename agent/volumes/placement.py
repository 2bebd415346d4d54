"""Placement: which disk a volume goes to, and the ledger of what is promised on each pool. Pure, no I/O.

A thin volume counts with its size divided by the overprovision ratio, a thick one in full; a pool is never promised
beyond its size, and a thick volume needs its clusters free now.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.errors import OutOfRange, ResourceExhausted
from agent.model import Provisioning, Tier
from agent.volumes.topology import ANYWHERE, EVERYWHERE, Requirement, Segment


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


class Ledger:
    """Pools and what every volume weighs on them. Reserving is synchronous, so two creations cannot share room."""

    def __init__(self, overprovision_ratio: float) -> None:
        self._ratio = overprovision_ratio
        self._pools: dict[str, Pool] = {}
        self._reserved: dict[str, tuple[str, int, Provisioning]] = {}

    def pool(self, disk: str) -> Pool | None:
        return self._pools.get(disk)

    def pools(self) -> list[Pool]:
        return list(self._pools.values())

    def set_pool(self, pool: Pool) -> None:
        """Add or refresh a pool; what volumes weigh on it is kept."""
        pool.promised_bytes = sum(
            self._weight(size, kind) for disk, size, kind in self._reserved.values() if disk == pool.disk
        )
        self._pools[pool.disk] = pool

    def remove_pool(self, disk: str) -> None:
        self._pools.pop(disk, None)

    def reserve(self, volume: str, disk: str, size_bytes: int, provisioning: Provisioning) -> None:
        """Count `volume` on `disk`, in place of what it weighed before."""
        self.release(volume)
        self._reserved[volume] = (disk, size_bytes, provisioning)
        pool = self._pools.get(disk)
        if pool:
            pool.promised_bytes += self._weight(size_bytes, provisioning)
            if provisioning is Provisioning.THICK:
                pool.free_bytes = max(0, pool.free_bytes - size_bytes)

    def release(self, volume: str) -> None:
        """Forget `volume`."""
        entry = self._reserved.pop(volume, None)
        pool = self._pools.get(entry[0]) if entry else None
        if entry and pool:
            pool.promised_bytes = max(0.0, pool.promised_bytes - self._weight(entry[1], entry[2]))
            if entry[2] is Provisioning.THICK:
                pool.free_bytes = min(pool.size_bytes, pool.free_bytes + entry[1])

    def room(self, pool: Pool, provisioning: Provisioning) -> int:
        """Bytes of a volume of that kind that `pool` could still take."""
        left = pool.size_bytes - pool.promised_bytes
        room = min(left, pool.free_bytes) if provisioning is Provisioning.THICK else left * self._ratio
        return max(0, int(room) // pool.cluster_bytes * pool.cluster_bytes)

    def ceiling(self, pool: Pool, provisioning: Provisioning) -> int:
        """Bytes of a volume of that kind that `pool` could take if it were empty."""
        return int(pool.size_bytes if provisioning is Provisioning.THICK else pool.size_bytes * self._ratio)

    def capacity(self, tier: Tier, provisioning: Provisioning, segment: Segment = EVERYWHERE) -> Capacity:
        """What could be created now of that tier in `segment`."""
        pools = [pool for pool in self._pools.values() if pool.tier is tier and segment.has(pool.node, pool.zone)]
        rooms = [self.room(pool, provisioning) for pool in pools]
        return Capacity(
            total_bytes=sum(rooms),
            largest_bytes=max(rooms, default=0),
            smallest_bytes=min((pool.cluster_bytes for pool in pools), default=0),
        )

    def can_grow(self, volume: str, size_bytes: int) -> bool:
        """Whether `volume` could become `size_bytes` large where it is."""
        disk, old_size, provisioning = self._reserved[volume]
        pool = self._pools.get(disk)
        return pool is not None and size_bytes - old_size <= self.room(pool, provisioning)

    def _weight(self, size_bytes: int, provisioning: Provisioning) -> float:
        return size_bytes if provisioning is Provisioning.THICK else size_bytes / self._ratio


@dataclass(frozen=True, slots=True)
class Request:
    """What placement needs to know of a volume. `limit_bytes` 0: no limit."""

    size_bytes: int
    limit_bytes: int
    tier: Tier
    provisioning: Provisioning
    topology: Requirement = ANYWHERE
    avoid: frozenset[str] = frozenset()
    """Disks that refused the volume just now."""


def choose(ledger: Ledger, request: Request) -> tuple[Pool, int]:
    """The pool with the most room in the most preferred place that has any, and the volume's real size there.

    Raises ResourceExhausted when no pool has room now, OutOfRange when none could ever hold the volume or the
    limit leaves no whole cluster count.
    """
    pools = [
        pool for pool in ledger.pools() if pool.tier is request.tier and request.topology.allows(pool.node, pool.zone)
    ]
    if not pools:
        raise ResourceExhausted(f"there is no ready disk of tier {request.tier}{_where(request)}")
    fitting = [
        pool for pool in pools if not request.limit_bytes or pool.round_up(request.size_bytes) <= request.limit_bytes
    ]
    if not fitting:
        raise OutOfRange(
            f"limit_bytes: {request.limit_bytes} leaves no room to round {request.size_bytes} up to whole clusters "
            f"of {pools[0].cluster_bytes} bytes; raise the limit"
        )
    _refuse_impossible(ledger, fitting, request)
    roomy = [
        pool
        for pool in fitting
        if pool.disk not in request.avoid
        and pool.round_up(request.size_bytes) <= ledger.room(pool, request.provisioning)
    ]
    if not roomy:
        room = max(ledger.room(pool, request.provisioning) for pool in fitting)
        raise ResourceExhausted(
            f"no disk of tier {request.tier}{_where(request)} has {request.size_bytes} bytes left; the largest volume "
            f"possible now is {room} bytes"
        )

    def order(pool: Pool) -> tuple[int, int, str]:
        return -request.topology.rank(pool.node, pool.zone), ledger.room(pool, request.provisioning), pool.disk

    best = max(roomy, key=order)
    return best, best.round_up(request.size_bytes)


def _where(request: Request) -> str:
    return f" in {request.topology}" if request.topology.requisite else ""


def _refuse_impossible(ledger: Ledger, pools: list[Pool], request: Request) -> None:
    largest = max(ledger.ceiling(pool, request.provisioning) for pool in pools)
    if request.size_bytes > largest:
        raise OutOfRange(
            f"required_bytes: {request.size_bytes} is more than a {request.provisioning} volume of tier "
            f"{request.tier} can ever have here ({largest} bytes)"
        )
