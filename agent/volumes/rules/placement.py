"""Placement: which disk a volume goes to. Pure, no I/O."""

from __future__ import annotations

from dataclasses import dataclass

from agent.errors import OutOfRange, ResourceExhausted
from agent.model import Provisioning, Tier
from agent.pools.ledger import Ledger, Pool
from agent.pools.space import Space
from agent.pools.topology import ANYWHERE, Requirement


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
    disk: str = ""
    """The only disk it can be on: that of its source."""
    frontend: str = ""
    """For people."""
    unfit: frozenset[str] = frozenset()
    """Nodes that do not offer `frontend`."""


def choose(ledger: Ledger, request: Request) -> tuple[Pool, int]:
    """The pool with the most room in the most preferred place that has any, and the volume's real size there.

    Raises ResourceExhausted when no pool has room now, OutOfRange when none could ever hold the volume or the
    limit leaves no whole cluster count.
    """
    there = [
        pool
        for pool in ledger.pools()
        if pool.tier is request.tier
        and request.topology.allows(pool.node, pool.zone)
        and request.disk in ("", pool.disk)
        and pool.node not in request.unfit
    ]
    pools = [pool for pool in there if pool.accepting]
    if not pools:
        what = f"the disk of its source, {request.disk}, is not" if request.disk else "there is no ready disk"
        whys = "".join(f"; {why}" for why in sorted({pool.why_not for pool in there if pool.why_not}))
        raise ResourceExhausted(f"{what} of tier {request.tier}{_where(request)}{whys}")
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
        raise _no_room(ledger, fitting, request)

    def order(pool: Pool) -> tuple[int, int, str]:
        return -request.topology.rank(pool.node, pool.zone), ledger.room(pool, request.provisioning), pool.disk

    best = max(roomy, key=order)
    return best, best.round_up(request.size_bytes)


def _no_room(ledger: Ledger, pools: list[Pool], request: Request) -> ResourceExhausted:
    room = max(ledger.room(pool, request.provisioning) for pool in pools)
    problem = (
        f"no disk of tier {request.tier}{_where(request)} has {request.size_bytes} bytes left; the largest volume "
        f"possible now is {room} bytes"
    )
    pool = max(pools, key=lambda pool: pool.free_bytes)
    if ledger.space(pool) >= Space.RESERVED:
        problem += f"; {ledger.shortage(pool)}"
    return ResourceExhausted(problem)


def _where(request: Request) -> str:
    where = f" in {request.topology}" if request.topology.requisite else ""
    return where + (f" on a node that offers the frontend {request.frontend}" if request.unfit else "")


def _refuse_impossible(ledger: Ledger, pools: list[Pool], request: Request) -> None:
    largest = max(ledger.ceiling(pool, request.provisioning) for pool in pools)
    if request.size_bytes > largest:
        raise OutOfRange(
            f"required_bytes: {request.size_bytes} is more than a {request.provisioning} volume of tier "
            f"{request.tier} can ever have here ({largest} bytes)"
        )
