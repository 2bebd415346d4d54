"""The metadata pages of pools: that they are used up is told before and instead of writes that fail without a reason.

Each lvol takes a page, and one more for every 512 clusters of its address space in which it has any (an extent page;
lib/blob/blobstore.c of SPDK). A pool has as many as it was made with. The target does not tell how many are left, so
where they could be used up it is asked for a few.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterable
from dataclasses import replace

from agent.errors import RpcError
from agent.model import Condition, ConditionStatus, Disk
from agent.pools.disk_conditions import METADATA_FULL, told, with_health, without_condition
from agent.pools.disk_records import DiskRecords
from agent.pools.ledger import Ledger
from agent.pools.names import probe_name
from agent.pools.pools import Pools, is_in_service
from agent.spdk import bdev, lvol
from agent.spdk.client import Rpc
from agent.tasks.background import Background

log = logging.getLogger(__name__)

LOOK_S = 10.0
PROBES = 8
"""Pages that are to be left: each is asked for by an lvol that is deleted at once."""

OTHERS = 64
"""Lvols that are no volume's or snapshot's: those that hold space until it is zeroed, helpers."""

_PAGE_BYTES = 4096
_EXTENT_PAGE_CLUSTERS = 512
_MASK_HEADER_BYTES = 5


def is_out_of_pages(error: RpcError) -> bool:
    """Whether that is what a refusal means: measured on v26.05 for bdev_lvol_create and bdev_lvol_snapshot."""
    return error.code == -32602 and error.message == os.strerror(errno.ENOMEM)


def used_up(pool: str) -> str:
    """What is to be said of it."""
    return (
        f"the metadata pages of pool {pool} are used up: no volume or snapshot can be made on it, and volumes cannot "
        "write where they have not written before; delete snapshots or volumes, or add a disk of this tier"
    )


def pages_at_least(device_bytes: int, data_bytes: int, cluster_bytes: int) -> int:
    """How many a pool has for sure whose disk has `device_bytes` and that has `data_bytes` for data.

    They fill what lies before the data, with a super block and three masks, up to a whole cluster.
    """
    per_cluster = max(1, cluster_bytes // _PAGE_BYTES)
    region = (device_bytes // cluster_bytes - data_bytes // cluster_bytes) * per_cluster
    masks = 2 * _mask_pages(region) + max(_mask_pages(region), _mask_pages(device_bytes // cluster_bytes))
    return max(0, region - (per_cluster - 1) - 1 - masks)


def pages_at_most(sizes: Iterable[int], taken_bytes: int, cluster_bytes: int) -> int:
    """How many are used at the very most by lvols of these sizes that have `taken_bytes` together."""
    sizes = list(sizes)
    extents = sum(-(-size // (cluster_bytes * _EXTENT_PAGE_CLUSTERS)) for size in sizes)
    return len(sizes) + min(extents, taken_bytes // cluster_bytes)


def _mask_pages(bits: int) -> int:
    return -(-(_MASK_HEADER_BYTES + -(-bits // 8)) // _PAGE_BYTES)


class MetadataPages:
    """Asks for pages where they could be used up, and tells what is so."""

    def __init__(self, rpc: Rpc, records: DiskRecords, pools: Pools, ledger: Ledger) -> None:
        self._rpc = rpc
        self._records = records
        self._pools = pools
        self._ledger = ledger
        self._background = Background()
        self._seen: dict[str, tuple[int, int]] = {}
        """What was in the pool when it was asked last."""

    async def start(self) -> None:
        self._background.every("metadata-pages", LOOK_S, self._look)

    async def stop(self) -> None:
        await self._background.stop()

    async def brought_up(self) -> None:
        self._seen.clear()
        for disk in await self._records.list():
            if is_in_service(disk) and self._pools.is_served(disk):
                await self._remove_probes(disk)

    async def _look(self) -> None:
        for disk in await self._records.list():
            pool = self._ledger.pool(disk.meta.name)
            if pool is None or not is_in_service(disk):
                continue
            sizes = self._ledger.sizes_on(disk.meta.name)
            taken = pool.size_bytes - pool.free_bytes
            most = OTHERS + PROBES + pages_at_most(sizes, taken, pool.cluster_bytes)
            least = pages_at_least(disk.status.pool.device_bytes, pool.size_bytes, pool.cluster_bytes)
            seen = (len(sizes), taken)
            if (most > least or told(disk, METADATA_FULL)) and self._seen.get(disk.meta.name) != seen:
                await self._judge(disk)
                self._seen[disk.meta.name] = seen

    async def _judge(self, disk: Disk) -> None:
        is_full = not await self._has_pages(disk)
        if is_full == bool(told(disk, METADATA_FULL)):
            return
        changed = await self._records.change(disk, _full if is_full else _not_full)
        self._pools.follow(changed)
        log.log(logging.WARNING if is_full else logging.INFO, "disk %s: %s", disk.meta.name,
                used_up(disk.pool_name) if is_full else "its pool has metadata pages again")  # fmt: skip

    async def _has_pages(self, disk: Disk) -> bool:
        try:
            for number in range(PROBES):
                await lvol.create(self._rpc, disk.pool_name, probe_name(number), 1 << 20, clear_method="none")
        except RpcError as error:
            if not is_out_of_pages(error):
                raise
            return False
        finally:
            await self._remove_probes(disk)
        return True

    async def _remove_probes(self, disk: Disk) -> None:
        """The first is made first and goes last: without it there is none."""
        for number in reversed(range(PROBES)):
            first, name = (f"{disk.pool_name}/{probe_name(each)}" for each in (0, number))
            if await bdev.get(self._rpc, first) is None:
                return
            if number == 0 or await bdev.get(self._rpc, name) is not None:
                await lvol.delete(self._rpc, name)


def _full(disk: Disk) -> Disk:
    text = used_up(disk.pool_name)
    return with_health(disk, Condition(METADATA_FULL, ConditionStatus.TRUE, "MetadataPages", text, time.time()))


def _not_full(disk: Disk) -> Disk:
    left = without_condition(disk.status.conditions, METADATA_FULL)
    return replace(disk, status=replace(disk.status, conditions=left))
