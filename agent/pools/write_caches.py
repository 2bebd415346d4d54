"""No disk in service keeps back what it has called written: its volatile write cache is off, or protected.

FLUSH does not reach a disk under a pool (docs/durability.md). So the cache is switched off before a pool is made and
each time a disk comes into service, and looked at from then on: a reset of the controller, a sleep of the machine or
somebody with root can switch it on again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Protocol

from agent.config.settings import DiskSettings
from agent.disks import nvme_cache, rules
from agent.disks.transport import Transport
from agent.disks.write_cache import OFF, KernelCaches, State, WriteCache, of_nvme
from agent.errors import QuarryError
from agent.model import Condition, ConditionStatus, Disk
from agent.pools.access import KERNEL, USERSPACE, kind
from agent.pools.disk_conditions import POWER_LOSS, PROTECTED, power_loss, with_health
from agent.pools.disk_records import DiskRecords
from agent.pools.why import Refused, Why
from agent.spdk import nvme_controller
from agent.spdk.client import Rpc

log = logging.getLogger(__name__)

REFUSED_AGAIN_S = 600.0
"""Between tries to switch off a cache that could not be: a command for each is seen in some disks' logs."""

REMEDY = (
    "switch it off by other means, use another disk, or, if the disk is protected against power loss (capacitors, a "
    "battery), say so by a rule with `power_loss_protected: true`"
)


class CacheWay(Protocol):
    """The write caches of the disks of one kind of access; as agent.disks.write_cache.KernelCaches, by Disk."""

    async def look(self, disk: Disk) -> WriteCache: ...

    async def switch_off(self, disk: Disk) -> WriteCache: ...


class WriteCaches:
    """Switches caches off and tells by a condition of the Disk what came of it. Files have none to be switched."""

    def __init__(self, records: DiskRecords, ways: Mapping[str, CacheWay], settings: DiskSettings) -> None:
        self._records = records
        self._ways = ways
        self._settings = settings

    async def secure(self, disk: Disk) -> Disk:
        """See to it that the disk keeps nothing back, unless a rule says that it may. The record says how it is."""
        way = self._ways.get(kind(disk))
        if way is None:
            return disk
        if rules.protects(self._settings, disk):
            return await self._tell(disk, await way.look(disk), protected=True)
        return await self._tell(disk, await way.switch_off(disk))

    async def check(self, disk: Disk) -> Disk:
        """Look at a disk in service again. A cache that has come on by itself is told, and switched off."""
        way, before = self._ways.get(kind(disk)), power_loss(disk)
        if way is None:
            return disk
        found = await way.look(disk)
        if found.state is State.UNKNOWN and before is not None:
            return disk  # a target that starts, a disk that is busy: what was known last stands
        if rules.protects(self._settings, disk):
            return await self._tell(disk, found, protected=True)
        if found.state is not State.ON:
            return await self._tell(disk, found) if before is None or not _agrees(before, found) else disk
        if before is not None and before.reason == State.ON:
            if time.time() - before.changed_at < REFUSED_AGAIN_S:
                return disk
        else:
            log.warning("the write cache of disk %s (%s) has come on again", disk.meta.name, disk.status.path)
            disk = await self._tell(disk, WriteCache(State.ON, f"{found.text}: it has come on again by itself"))
        return await self._tell(disk, await way.switch_off(disk))

    def require_safe(self, disk: Disk) -> None:
        """Refused unless the disk keeps nothing back, as `secure` found. Before a pool is made on it."""
        found = power_loss(disk)
        if found is None or found.status is ConditionStatus.TRUE or disk.status.transport == Transport.LOOP:
            return
        raise Refused(
            Why.WRITE_CACHE,
            f"{disk.status.path} could lose what was synced when the power is cut: {found.message}; {REMEDY}",
        )

    async def _tell(self, disk: Disk, found: WriteCache, *, protected: bool = False) -> Disk:
        condition = _condition(found, protected=protected)
        told = await self._records.change(disk, lambda now: with_health(now, condition))
        if told.status.conditions != disk.status.conditions:
            level = logging.INFO if condition.status is ConditionStatus.TRUE else logging.WARNING
            log.log(level, "disk %s (%s): %s", disk.meta.name, disk.status.path, condition.message)
        return told


class KernelWay:
    """Implements `CacheWay` for disks that the kernel drives."""

    def __init__(self, caches: KernelCaches) -> None:
        self._caches = caches

    async def look(self, disk: Disk) -> WriteCache:
        return await self._caches.look(_name(disk))

    async def switch_off(self, disk: Disk) -> WriteCache:
        return await self._caches.switch_off(_name(disk))


class UserspaceWay:
    """Implements `CacheWay` for disks that the target drives: the same commands, sent by the target."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc

    async def look(self, disk: Disk) -> WriteCache:
        return await self._ask(disk, nvme_cache.look)

    async def switch_off(self, disk: Disk) -> WriteCache:
        found = await self._ask(disk, nvme_cache.switch_off)
        controller, _, nsid = disk.bdev_name.rpartition("n")
        if found.state is State.OFF:
            try:
                await nvme_controller.flush(self._rpc, controller, int(nsid))
            except QuarryError as error:
                return WriteCache(State.UNKNOWN, f"{OFF.text}, and it could not be emptied: {error}")
        return found

    async def _ask(self, disk: Disk, act: nvme_cache.Act) -> WriteCache:
        controller, _, _ = disk.bdev_name.rpartition("n")
        try:
            return of_nvme(await act(nvme_controller.to_controller(self._rpc, controller)))
        except QuarryError as error:
            return WriteCache(State.UNKNOWN, f"its write cache cannot be asked for: {error}")


def ways(rpc: Rpc) -> dict[str, CacheWay]:
    """The kernel's disks by sysfs and their own commands, the target's by the target."""
    return {KERNEL: KernelWay(KernelCaches()), USERSPACE: UserspaceWay(rpc)}


_STATUS = {
    State.NONE: ConditionStatus.TRUE,
    State.OFF: ConditionStatus.TRUE,
    State.ON: ConditionStatus.FALSE,
    State.UNKNOWN: ConditionStatus.UNKNOWN,
}


def _condition(found: WriteCache, *, protected: bool) -> Condition:
    if protected and not found.state.is_safe:
        text = f"by a rule it is protected against power loss; its write cache is left as it is ({found.text})"
        return Condition(POWER_LOSS, ConditionStatus.TRUE, PROTECTED, text, time.time())
    return Condition(POWER_LOSS, _STATUS[found.state], found.state.value, found.text, time.time())


def _agrees(told: Condition, found: WriteCache) -> bool:
    return told.reason == found.state.value


def _name(disk: Disk) -> str:
    return disk.status.path.removeprefix("/dev/").replace("/", "!")
