"""I/O errors of disks in service, as the target counts them: told on the Disk, and so on its volumes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from agent.errors import QuarryError
from agent.model import Condition, ConditionStatus, Disk
from agent.pools.access import FILE, kind
from agent.pools.disk_conditions import IO_ERRORS, with_condition
from agent.pools.disk_records import DiskRecords
from agent.pools.pools import Pools
from agent.spdk import bdev
from agent.spdk.client import Rpc
from agent.tasks.background import Background

log = logging.getLogger(__name__)

INTERVAL_S = 1.0
QUIET_S = 3600.0
"""A disk without an error for so long is taken for well again: a cable was plugged in, a sector was remapped."""


class IoErrors:
    """One call a second for all disks, none without disks."""

    def __init__(self, rpc: Rpc, records: DiskRecords, pools: Pools, is_ready: Callable[[], bool]) -> None:
        self._rpc = rpc
        self._records = records
        self._pools = pools
        self._is_ready = is_ready
        self._counted: dict[str, int] = {}
        self._last: dict[str, float] = {}
        self._background = Background()

    async def start(self) -> None:
        self._background.every("disks-io-errors", INTERVAL_S, self._look_if_ready)

    async def stop(self) -> None:
        await self._background.stop()

    async def brought_up(self) -> None:
        self._counted.clear()  # a new target counts from the beginning

    async def _look_if_ready(self) -> None:
        try:
            if self._is_ready():
                await self._look()
        except QuarryError as error:
            log.debug("I/O errors could not be counted: %s", error)  # a bdev went in between

    async def _look(self) -> None:
        records = [disk for disk in await self._records.list() if kind(disk) != FILE and self._pools.is_served(disk)]
        disks = {disk.bdev_name: disk for disk in records}
        if not disks:
            return
        stats = await bdev.iostat(self._rpc, list(disks))
        for each in stats.bdevs:
            await self._judge(disks[each.name], sum(each.io_error.values()))

    async def _judge(self, disk: Disk, count: int) -> None:
        now = time.monotonic()
        told = any(each.type == IO_ERRORS and each.status is ConditionStatus.TRUE for each in disk.status.conditions)
        before = self._counted.get(disk.meta.name, count if told else 0)
        self._counted[disk.meta.name] = count
        if count > before:
            self._last[disk.meta.name] = now
            log.error("disk %s (%s) failed %d operations", disk.meta.name, disk.status.path, count - before)
        since = self._last.setdefault(disk.meta.name, now) if told else self._last.get(disk.meta.name)
        failing = since is not None and now - since < QUIET_S
        if failing == told:
            return
        changed = await self._records.change(disk, lambda known: _with(known, failing=failing))
        self._pools.follow(changed)


def _with(disk: Disk, *, failing: bool) -> Disk:
    status, reason = (ConditionStatus.TRUE, "Errors") if failing else (ConditionStatus.FALSE, "Quiet")
    text = f"reading from or writing to {disk.status.path} fails: see `dmesg` and the health of the disk"
    message = text if failing else f"no error for {QUIET_S / 3600:g} h"
    condition = Condition(IO_ERRORS, status, reason, message, time.time())
    conditions = with_condition(disk.status.conditions, condition)
    return replace(disk, status=replace(disk.status, conditions=conditions))
