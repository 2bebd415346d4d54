"""A pool follows its disk: it grows with it as far as it can, and a disk that has shrunk is called that."""

from __future__ import annotations

import logging
import time

from agent.config.settings import PoolSettings
from agent.errors import Unavailable
from agent.model import Condition, ConditionStatus, Disk
from agent.pools.access import FILE, kind
from agent.pools.disk_conditions import SPACE_LOW, being_zeroed, takes_new_volumes, why_not
from agent.pools.ledger import Pool
from agent.pools.space import Space, describe
from agent.sizes import gib
from agent.spdk import lvol
from agent.spdk.client import Rpc

log = logging.getLogger(__name__)

_TIB = 1 << 40


def shrunk(disk: Disk, size_bytes: int) -> str:
    """Why a disk of `size_bytes` is too small for its pool; "" when it is not."""
    had = disk.status.pool.device_bytes
    if not 0 < size_bytes < had:
        return ""
    remedy = _CUT_SHORT if kind(disk) == FILE else "Give it its size back, or restore its volumes from backups"
    return (
        f"{disk.status.path} has become smaller than its pool: {gib(size_bytes)} instead of "
        f"{gib(had)}, so part of what its volumes hold is gone. {remedy}"
    )


_CUT_SHORT = (
    "What was cut off a file does not come back with its size: give that back, so that no more is lost, and restore "
    "its volumes from backups"
)


def was_cut_short(disk: Disk) -> str:
    """What is said of a file that was cut short and has its size again, as long as something lies on it."""
    return (
        f"{disk.status.path} was cut short while it was in use: what lay there is lost, though it has its size again. "
        "Restore its volumes from backups; this is said until the volumes and snapshots that lay on it then are deleted"
    )


def beyond_limit(disk: Disk, info: lvol.LvstoreInfo, size_bytes: int) -> str:
    """Why the pool cannot grow to `size_bytes`; "" when it can."""
    if size_bytes <= info.growth_limit_bytes:
        return ""
    return (
        f"{disk.status.path} has grown to {gib(size_bytes)}, further than its pool can follow "
        f"({gib(info.growth_limit_bytes)}): it is served at {gib(info.size_bytes)} as before. To "
        "use all of it, delete its volumes, release and claim it again (docs/disks.md)"
    )


async def grown(rpc: Rpc, disk: Disk, info: lvol.LvstoreInfo, size_bytes: int) -> lvol.LvstoreInfo:
    """The pool after it took over the room that its disk has gained. Raises RpcError when the target refuses."""
    log.info("disk %s has grown to %d bytes: so does its pool", disk.meta.name, size_bytes)
    await lvol.grow_lvstore(rpc, disk.pool_name)
    after = await lvol.get_lvstore(rpc, disk.pool_name)
    if after is None:
        raise Unavailable(f"pool {disk.pool_name} is missing after its growth")
    return after


def metadata_ratio(size_bytes: int, settings: PoolSettings) -> int:
    """`num_md_pages_per_cluster_ratio` (a percentage) that gives a pool of `size_bytes` its metadata pages.

    As few as will do: pages bound the number of volumes, but each is read when the pool is loaded after a crash.
    """
    pages = settings.metadata_pages_min + settings.metadata_pages_per_tib * size_bytes // _TIB
    clusters = max(1, size_bytes // settings.cluster_bytes)
    return max(1, -(-pages * 100 // clusters))


def low_space(disk: Disk, space: Space, info: lvol.LvstoreInfo) -> Condition:
    """The condition SpaceLow of a disk. It stays as it is, figures included, until its pool passes a threshold.

    What is being zeroed comes free by itself: that is no shortage.
    """
    zeroing = bool(being_zeroed(disk))
    space = Space.AMPLE if zeroing else space
    reason = space.name.capitalize()
    for known in disk.status.conditions:
        if known.type == SPACE_LOW and (known.reason == reason or zeroing):
            return known
    status = ConditionStatus.FALSE if space is Space.AMPLE else ConditionStatus.TRUE
    message = describe(disk.pool_name, space, info.size_bytes, info.free_bytes)
    return Condition(SPACE_LOW, status, reason, message, time.time())


def counted(disk: Disk, node: str, zone: str, info: lvol.LvstoreInfo) -> Pool:
    """The pool of `disk` as placement counts with it."""
    return Pool(
        disk=disk.meta.name,
        node=node,
        tier=disk.tier,
        size_bytes=info.size_bytes,
        free_bytes=info.free_bytes,
        cluster_bytes=info.cluster_size,
        zone=zone,
        accepting=takes_new_volumes(disk),
        why_not=why_not(disk),
        zeroing=being_zeroed(disk),
    )
