"""Looks at the write caches of the disks in service again and again: one may come on by itself."""

from __future__ import annotations

import asyncio
import logging

from agent.errors import QuarryError
from agent.model import Disk, DiskPhase
from agent.pools.access import FILE, kind
from agent.pools.disk_records import DiskRecords
from agent.pools.pools import Pools, is_in_service
from agent.pools.write_caches import WriteCaches
from agent.tasks.background import Background

log = logging.getLogger(__name__)

INTERVAL_S = 10.0
"""Between looks at a disk: for so long a cache that came on by itself stays on."""


class WriteCacheKeeper:
    """Looks at the disks in service again and again."""

    def __init__(self, records: DiskRecords, pools: Pools, caches: WriteCaches, interval_s: float = INTERVAL_S) -> None:
        self._records = records
        self._pools = pools
        self._caches = caches
        self._interval_s = interval_s
        self._background = Background()

    async def start(self) -> None:
        self._background.every("disks-write-caches", self._interval_s, self.look)

    async def stop(self) -> None:
        await self._background.stop()

    async def look(self) -> None:
        """At every disk in service, at once: one that does not answer holds up nobody else."""
        served = [disk for disk in await self._records.list() if _is_served(disk)]
        await asyncio.gather(*(self._look_at(disk) for disk in served))

    async def _look_at(self, disk: Disk) -> None:
        try:
            told = await self._caches.check(disk)
        except QuarryError as error:
            log.debug("write cache of disk %s: %s", disk.meta.name, error)
            return
        if told is not disk:
            self._pools.follow(told)


def _is_served(disk: Disk) -> bool:
    return disk.status.phase is DiskPhase.READY and is_in_service(disk) and kind(disk) != FILE
