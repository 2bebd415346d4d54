"""Asks the disks in service how they are, from time to time, and tells what they answer by a condition of the Disk."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping

from agent.disks.health import Assessment, Measures, assess, from_smartctl
from agent.errors import QuarryError
from agent.host import smartctl
from agent.model import Condition, ConditionStatus, Disk, DiskPhase, Health
from agent.pools.access import FILE, KERNEL, USERSPACE, kind
from agent.pools.disk_conditions import HEALTH, with_health
from agent.pools.disk_records import DiskRecords
from agent.pools.pools import Pools, is_in_service
from agent.spdk import nvme_controller
from agent.spdk.client import Rpc
from agent.tasks.background import Background

log = logging.getLogger(__name__)

TICK_S = 5.0
"""Between looks at who has to be asked: a disk that comes into service is asked soon."""

APART_S = 0.5
"""Between the questions to two disks: a hundred programs at once would be felt."""

TELLING = frozenset({"nvme", "sata", "sas", "scsi"})
"""Transports of disks that keep a health log; the others are not asked."""

Ask = Callable[[Disk], Awaitable[Measures]]
_STATUS = {
    Health.HEALTHY: ConditionStatus.TRUE,
    Health.DEGRADED: ConditionStatus.FALSE,
    Health.FAILING: ConditionStatus.FALSE,
    Health.UNKNOWN: ConditionStatus.UNKNOWN,
}


class HealthKeeper:
    """`ask` is how disks of each kind of access are asked."""

    def __init__(self, records: DiskRecords, pools: Pools, ask: Mapping[str, Ask], interval_s: float) -> None:
        self._records = records
        self._pools = pools
        self._ask = ask
        self._interval_s = interval_s
        self._asked: dict[str, float] = {}
        self._background = Background()

    async def start(self) -> None:
        tick_s = min(TICK_S, self._interval_s)
        self._background.every("disks-health", tick_s, lambda: self.look(time.monotonic() - self._interval_s))

    async def stop(self) -> None:
        await self._background.stop()

    async def look(self, since: float = math.inf) -> None:
        """Ask the disks in service that were not asked `since` (monotonic), one after the other."""
        present = {disk.meta.name: disk for disk in await self._records.list() if _is_asked(disk)}
        self._asked = {name: when for name, when in self._asked.items() if name in present}
        for name, disk in present.items():
            if self._asked.get(name, -math.inf) > since:
                continue
            self._asked[name] = time.monotonic()
            try:
                await self._look_at(disk)
            except QuarryError as error:
                log.debug("health of disk %s: %s", name, error)
            await asyncio.sleep(min(APART_S, self._interval_s))

    async def _look_at(self, disk: Disk) -> None:
        ask = self._ask.get(kind(disk))
        if ask is None:
            return
        try:
            found = assess(await ask(disk))
        except QuarryError as error:
            found = Assessment(Health.UNKNOWN, (str(error),))
        if found.health is Health.UNKNOWN and _is_known(disk):
            return  # a disk that sleeps, or a target that starts: what was known last stands
        condition = Condition(HEALTH, _STATUS[found.health], found.health.value, str(found), time.time())
        told = await self._records.change(disk, lambda now: with_health(now, condition))
        if told.status.conditions != disk.status.conditions:
            bad = found.health in (Health.DEGRADED, Health.FAILING)
            log.log(logging.WARNING if bad else logging.INFO, "disk %s (%s) is %s: %s", disk.meta.name,
                    disk.status.path, found.health.lower(), found)  # fmt: skip
        self._pools.follow(told)


def ways_to_ask(rpc: Rpc) -> dict[str, Ask]:
    """The kernel's disks by smartctl, the target's own by the target."""

    async def kernel(disk: Disk) -> Measures:
        return from_smartctl(await smartctl.read(disk.status.path))

    async def userspace(disk: Disk) -> Measures:
        controller, _, _ = disk.bdev_name.rpartition("n")
        return from_target(await nvme_controller.health(rpc, controller))

    return {KERNEL: kernel, USERSPACE: userspace}


def from_target(told: nvme_controller.HealthInfo) -> Measures:
    """NVMe's health log as the target passes it on."""
    return Measures(
        passed=told.critical_warning == 0,
        critical_warning=told.critical_warning,
        temperature_c=told.temperature_celsius,
        percentage_used=told.percentage_used,
        available_spare=told.available_spare_percentage,
        spare_threshold=told.available_spare_threshold_percentage,
        media_errors=told.media_errors,
        power_on_hours=told.power_on_hours,
    )


def _is_asked(disk: Disk) -> bool:
    served = disk.status.phase is DiskPhase.READY and is_in_service(disk)
    return served and kind(disk) != FILE and disk.status.transport in TELLING


def _is_known(disk: Disk) -> bool:
    return any(each.type == HEALTH and each.status is not ConditionStatus.UNKNOWN for each in disk.status.conditions)
