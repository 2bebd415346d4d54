"""Brings a disk to the driver that is wanted of it (`Disk.spec.driver`), while it is not in service."""

from __future__ import annotations

import time
from dataclasses import replace

from agent.disks.binder import Binder
from agent.disks.binding import Driver
from agent.disks.inventory import Known
from agent.errors import FailedPrecondition, QuarryError
from agent.model import Condition, ConditionStatus, Disk, DiskDriver, DiskPhase
from agent.pools.disk_conditions import with_condition, without_condition
from agent.pools.disk_records import DiskRecords

DRIVER = "Driver"
"""Condition of a Disk: the driver that is wanted is not the one it has, and why."""

NOT_CHANGED = "DriverNotChanged"

_IN_SERVICE = {DiskPhase.FORMATTING, DiskPhase.RELEASING}


class DiskDrivers:
    """`embedded`: the target is the one for development, which drives no disks itself."""

    def __init__(self, binder: Binder, records: DiskRecords, *, embedded: bool) -> None:
        self._binder = binder
        self._records = records
        self._embedded = embedded

    async def change(self, disk: Disk, known: Known) -> bool:
        """Move the disk's controller if that is wanted; whether it was: the disk is another device then.

        The record says why it was not. Raises that too, unless the disk is in service: then it stays as it is until it
        is released.
        """
        wanted = disk.spec.driver
        if wanted is None or wanted is known.status.driver:
            await self._tell(disk, None)
            return False
        if disk.status.pool.uuid or disk.status.phase in _IN_SERVICE:
            await self._tell(disk, FailedPrecondition("the disk is in service: release it first"))
            return False
        try:
            await self._move(known, wanted)
        except QuarryError as error:
            await self._tell(disk, error)
            raise
        return True

    async def _move(self, known: Known, wanted: DiskDriver) -> None:
        if wanted is DiskDriver.KERNEL:
            binding, _ = self._binder.find(known.identity)
            await self._binder.unbind(binding)
            return
        if self._embedded:
            raise FailedPrecondition(
                "the embedded target drives no disks itself: start spdk_tgt and name its socket by --spdk-socket"
            )
        await self._binder.bind(known, Driver.VFIO)

    async def _tell(self, disk: Disk, error: QuarryError | None) -> None:
        def told(now: Disk) -> Disk:
            conditions = without_condition(now.status.conditions, DRIVER)
            if error is not None:
                new = Condition(DRIVER, ConditionStatus.FALSE, NOT_CHANGED, str(error), time.time())
                conditions = with_condition(now.status.conditions, new)
            return replace(now, status=replace(now.status, conditions=conditions))

        await self._records.change(disk, told)
