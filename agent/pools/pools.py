"""Pools: the base bdev and the lvstore of every claimed disk of this node.

Known pools are imported, never made again. A new one is made only on a disk proven blank, and the Disk says so
(phase Formatting) durably before the first byte is written: a crash in between leaves half a label that is ours.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import replace

from agent.config.settings import PoolSettings
from agent.errors import FailedPrecondition, QuarryError, RpcError, TransportClosed, Unavailable
from agent.model import Condition, ConditionStatus, Disk, DiskPhase, PoolStatus
from agent.pools import pool_size
from agent.pools.access import FILE, LOAD_TIMEOUT_S, DiskAccess, kind
from agent.pools.disk_conditions import (
    ATTENTION,
    attention,
    takes_new_volumes,
    why_not,
    with_condition,
    with_health,
    without_condition,
)
from agent.pools.disk_records import DiskRecords
from agent.pools.ledger import Ledger, Pool
from agent.pools.names import is_held_name, is_probe_name
from agent.pools.pool_states import attention_for, gone, in_phase, refused_for, released, some
from agent.pools.safeguards import Safeguards
from agent.pools.why import Refused, Why
from agent.spdk import bdev, lvol
from agent.spdk.client import Rpc

log = logging.getLogger(__name__)

USABLE = "Usable"
"""Condition of a Disk that is claimed and cannot be used; the reason is one of agent.pools.access.Why."""

RELEASED = "Released"
"""Condition of a Disk that is to be released and cannot be yet."""


class Pools:
    """Ensures pools and tells the ledger what they have. `access` is how disks of each `access.kind` are reached.

    One thing at a time happens to a disk; different disks do not wait for each other.
    """

    def __init__(
        self,
        rpc: Rpc,
        records: DiskRecords,
        ledger: Ledger,
        zone: str,
        settings: PoolSettings,
        access: Mapping[str, DiskAccess],
        safeguards: Safeguards,
    ) -> None:
        self._rpc = rpc
        self._records = records
        self._ledger = ledger
        self._zone = zone
        self._settings = settings
        self._access = access
        self._caches, self._zeroing = safeguards
        self._refreshing = asyncio.Lock()
        self._turns: dict[str, asyncio.Lock] = {}

    async def ensure_all(self) -> list[Disk]:
        """Bring up every disk in service; those that fail say why in their status. Returns the ready ones."""
        disks = [disk for disk in await self._records.list() if is_in_service(disk)]
        ready = await asyncio.gather(*(self._ensure_or_tell(disk) for disk in disks))
        return [disk for disk in ready if disk is not None]

    async def ensure(self, disk: Disk) -> Disk:
        """Bring up one disk: attached as it is now, its pool loaded, made or grown, and counted with.

        Raises QuarryError, as the status of the disk then says too. A pool that is loaded is served all the same.
        """
        async with self._turn(disk):
            disk = await self._records.get(disk.meta.name) or disk
            try:
                await self._zeroing.before_attach()
                await self._reach(disk).attach(disk)
                await bdev.wait_for_examine(self._rpc, timeout_s=LOAD_TIMEOUT_S)
                # After the pool was loaded: what that wrote is flushed, and nothing of a volume has been written yet.
                disk = await self._caches.secure(disk)
                return await self._ensure_pool(disk)
            except TransportClosed:
                raise
            except QuarryError as error:
                if not await self._goes_on(disk, error):
                    await self._fail(disk, error)
                raise

    async def lose(self, disk: Disk, why: str) -> None:
        """The disk is gone: so are its bdev and its pool, until it comes back."""
        async with self._turn(disk):
            if disk.status.phase is not DiskPhase.MISSING:
                log.error("disk %s (%s) is gone: %s", disk.meta.name, disk.status.path, why)
            try:
                await self._records.change(
                    disk, lambda now: replace(now, status=replace(now.status, phase=DiskPhase.MISSING, message=why))
                )
            finally:
                self._ledger.remove_pool(disk.meta.name)
            await self._reach(disk).detach(disk)

    async def release(self, disk: Disk) -> Disk:
        """Take the pool off the disk, which is blank afterwards.

        Raises Refused while anything lives in the pool, which is left as it is and takes no new volumes.
        """
        async with self._turn(disk):
            disk = await self._records.get(disk.meta.name) or disk
            if disk.status.phase is not DiskPhase.RELEASING:
                try:
                    disk = await self._begin_release(disk)
                except Refused as error:
                    await self._tell(
                        disk, Condition(RELEASED, ConditionStatus.FALSE, error.why, str(error), time.time())
                    )
                    raise
            access = self._reach(disk)
            await access.detach(disk)
            await access.wipe(disk)
            log.info("disk %s (%s) is released", disk.meta.name, disk.status.path)
            return await self._records.change(disk, released)

    async def refresh(self, *, record: bool = True) -> list[Disk]:
        """Look at the space of every pool again, one call to the target. Returns the disks whose pool is there.

        `record` stores what is free now; without it a Disk is stored only when its pool passed a threshold, went or
        came back, so that looking often costs no writes.
        """
        async with self._refreshing:
            as_of = self._ledger.now
            found = {each.name: each for each in await lvol.list_lvstores(self._rpc)}
            present = []
            for disk in await self._records.list():
                pool, info = disk.status.pool, found.get(disk.pool_name)
                if not is_in_service(disk) or not pool.uuid or self._turn(disk).locked():
                    continue
                if not self._zeroing.lets_in(disk):
                    continue
                if info is not None and info.uuid == pool.uuid and info.base_bdev == disk.bdev_name:
                    present.append(await self._record(disk, info, as_of, always=record))
                elif disk.status.phase is DiskPhase.READY:
                    await self._fail(disk, gone(disk))
            return present

    async def give_up(self, disk: Disk) -> Disk:
        """Forget a pool that is no longer on its disk. Raises Refused while volumes or snapshots were in it."""
        async with self._turn(disk):
            if living := self._ledger.reserved_on(disk.meta.name):
                raise Refused(Why.IN_USE, f"disk {disk.meta.name} held {some(sorted(living))}: delete them first")
            return await self._records.change(disk, released)

    async def forget(self, disk: Disk) -> bool:
        """Let the target go of a disk whose record was deleted. Not of one that is served, or wanted again: false."""
        async with self._turn(disk):
            now = await self._records.get(disk.meta.name)
            if self.is_served(disk) or (now is not None and is_in_service(now)):
                return False
            if kind(disk) in self._access:
                await self._reach(disk).detach(disk)
            return True

    def follow(self, disk: Disk) -> None:
        """Count the pool as what is wanted of its disk now: its tier, and whether it takes new volumes."""
        pool = self._ledger.pool(disk.meta.name)
        if pool is not None:
            pool.tier, pool.accepting, pool.why_not = disk.tier, takes_new_volumes(disk), why_not(disk)

    def is_served(self, disk: Disk) -> bool:
        """Whether the disk's pool is there to be used."""
        return self.serves(disk.meta.name)

    def serves(self, name: str) -> bool:
        """Whether the pool of the disk of that name is there to be used."""
        return self._ledger.pool(name) is not None

    def _turn(self, disk: Disk) -> asyncio.Lock:
        return self._turns.setdefault(disk.meta.name, asyncio.Lock())

    def _reach(self, disk: Disk) -> DiskAccess:
        access = self._access.get(kind(disk))
        if access is None:
            raise Refused(Why.NO_DRIVER, f"this agent has no driver {kind(disk)!r} for {disk.status.path}")
        return access

    async def _ensure_or_tell(self, disk: Disk) -> Disk | None:
        try:
            return await self.ensure(disk)
        except TransportClosed:
            raise
        except QuarryError:  # told by its status
            return await self._records.get(disk.meta.name) if self.is_served(disk) else None

    async def _ensure_pool(self, disk: Disk) -> Disk:
        info = await lvol.get_lvstore(self._rpc, disk.pool_name)
        before = disk.status.pool.uuid
        if before and info is None:
            await self._reach(disk).detach(disk)  # so that the next look examines it anew
            raise Refused(Why.POOL_LOST, f"pool {before} was not loaded: {await self._reach(disk).explain(disk)}")
        if before and info is not None and info.uuid != before:
            raise Refused(
                Why.OTHER_POOL,
                f"{disk.status.path} held pool {before} and now holds {info.uuid}; it is left alone. Give the disk "
                "back, or forget it (`quarry disks forget`)",
            )
        if info is not None and info.base_bdev != disk.bdev_name:
            raise Refused(Why.OTHER_POOL, f"pool {disk.pool_name} is served from {info.base_bdev}, another disk")
        is_zeroed = False
        if info is None:
            disk, is_zeroed = await self._create_pool(disk)
            info = await lvol.get_lvstore(self._rpc, disk.pool_name)
            if info is None:
                raise RpcError("bdev_lvol_create_lvstore", 0, f"pool {disk.pool_name} is missing after its creation")
        device = await bdev.get(self._rpc, disk.bdev_name)
        disk = await self._zeroing.loaded(disk, unknown=not before and not is_zeroed)
        info = await lvol.get_lvstore(self._rpc, disk.pool_name) or info
        size_bytes, had = device.size_bytes if device else 0, disk.status.pool.device_bytes
        if 0 < had < size_bytes and (limit := pool_size.beyond_limit(disk, info, size_bytes)):
            disk = await self._tell(disk, attention_for(Why.GROWTH_LIMIT, limit))
            return await self._record(disk, info, device_bytes=had)
        if 0 < had < size_bytes:
            is_zeroed = await self._zero_gain(disk, info, size_bytes)
            info = await pool_size.grown(self._rpc, disk, info, size_bytes)
            if not is_zeroed:
                disk = await self._zeroing.grown(disk)
                info = await lvol.get_lvstore(self._rpc, disk.pool_name) or info
        if kind(disk) == FILE and attention(disk, Why.SHRUNK) and await self._living_on(disk):
            disk = await self._tell(disk, attention_for(Why.SHRUNK, pool_size.was_cut_short(disk)))
        else:
            disk = await self._all_is_well(disk)
        return await self._record(disk, info, device_bytes=size_bytes)

    async def _goes_on(self, disk: Disk, error: QuarryError) -> bool:
        """Whether the pool is loaded though a step of bringing it up failed: then it is served, and that is told."""
        info = await lvol.get_lvstore(self._rpc, disk.pool_name)
        if info is None or not info.uuid or info.uuid != disk.status.pool.uuid or info.base_bdev != disk.bdev_name:
            return False
        try:
            disk = await self._zeroing.loaded(disk, unknown=False)
        except QuarryError as worse:
            log.error("disk %s stays closed: %s", disk.meta.name, worse)
            return False
        why = error.why if isinstance(error, Refused) else Why.FAILED
        await self._record(await self._tell(disk, attention_for(why, str(error))), info)
        return True

    async def _create_pool(self, disk: Disk) -> tuple[Disk, bool]:
        """Make it; whether all of the disk reads as zeroes beside it."""
        access = self._reach(disk)
        try:
            if disk.status.phase is not DiskPhase.FORMATTING:
                self._caches.require_safe(disk)
                await access.require_blank(disk)
                disk = await self._records.change(disk, lambda now: in_phase(now, DiskPhase.FORMATTING))
            log.info("creating pool %s on %s", disk.pool_name, disk.status.path)
            await access.require_blank(disk)  # the last look before data would be destroyed
            is_zeroed = await self._zero(disk, 0, disk.status.size_bytes)
            await lvol.create_lvstore(
                self._rpc,
                disk.bdev_name,
                disk.pool_name,
                cluster_bytes=self._settings.cluster_bytes,
                md_ratio=pool_size.metadata_ratio(disk.status.size_bytes, self._settings),
                clear_method="none",
                timeout_s=LOAD_TIMEOUT_S,
            )
        except (RpcError, FailedPrecondition):
            # Answered: nothing is half done. The mark would let whatever comes onto the disk later be overwritten.
            if disk.status.phase is DiskPhase.FORMATTING:
                await self._records.change(disk, lambda now: in_phase(now, DiskPhase.AVAILABLE))
            await access.detach(disk)
            raise
        return disk, is_zeroed

    async def _zero(self, disk: Disk, start: int, end: int) -> bool:
        """Have the disk zero itself where it can, telling how far it is."""
        size = end - start

        async def tell(done: int) -> None:
            message = f"{100 * done // size} %: {done >> 20} of {size >> 20} MiB are zeroed"
            await self._records.change(disk, lambda now: replace(now, status=replace(now.status, message=message)))

        return await self._reach(disk).zero(disk, start, end, tell)

    async def _zero_gain(self, disk: Disk, info: lvol.LvstoreInfo, size_bytes: int) -> bool:
        """Zero what the disk has gained; not when the pool may have it already, since a growth was cut off."""
        pool = disk.status.pool
        return info.size_bytes == pool.size_bytes and await self._zero(disk, pool.device_bytes, size_bytes)

    async def _begin_release(self, disk: Disk) -> Disk:
        pool = self._ledger.pool(disk.meta.name)
        if pool is None:
            raise Unavailable(f"the pool of disk {disk.meta.name} is not loaded: what lives on it is not known")
        pool.accepting = False  # what is placed from here on goes elsewhere
        living = await self._living_on(disk)
        if living:
            raise Refused(Why.IN_USE, f"disk {disk.meta.name} holds {some(living)}: delete them first")
        await self._zeroing.require_clean(disk)
        self._ledger.remove_pool(disk.meta.name)
        return await self._records.change(disk, lambda now: in_phase(now, DiskPhase.RELEASING))

    async def _living_on(self, disk: Disk) -> list[str]:
        """Volumes and snapshots, recorded or found in the pool."""
        lvols = await lvol.list_lvols(self._rpc, disk.pool_name)
        found = (each.name for each in lvols if not is_held_name(each.name) and not is_probe_name(each.name))
        return sorted({*self._ledger.reserved_on(disk.meta.name), *found})

    async def _record(
        self,
        disk: Disk,
        info: lvol.LvstoreInfo,
        as_of: int | None = None,
        *,
        always: bool = True,
        device_bytes: int = 0,
    ) -> Disk:
        pool = pool_size.counted(disk, self._records.node, self._zone, info)
        self._ledger.set_pool(pool, as_of)
        low = pool_size.low_space(disk, self._ledger.space(pool), info)
        if low not in disk.status.conditions and (low.status is ConditionStatus.TRUE or disk.status.conditions):
            log.log(logging.WARNING if low.status is ConditionStatus.TRUE else logging.INFO, "%s", low.message)

        def ready(now: Disk) -> Disk:
            kept = now.status.pool
            if always or now.status.phase is not DiskPhase.READY or self._judged_otherwise(pool, kept.free_bytes):
                size = device_bytes or kept.device_bytes
                known = PoolStatus(info.uuid, info.size_bytes, info.free_bytes, info.cluster_size, size)
                kept = replace(known, free_space=kept.free_space)
            told = with_condition(without_condition(now.status.conditions, USABLE), low)
            told = without_condition(told, RELEASED) if now.spec.claimed else told
            status = replace(now.status, phase=DiskPhase.READY, message="", pool=kept, conditions=told)
            return replace(now, status=status)

        try:
            return await self._records.change(disk, ready)
        except Unavailable as error:  # of the store: what serves goes on serving, whether that can be recorded or not
            log.warning("disk %s serves, which could not be recorded: %s", disk.meta.name, error)
            return ready(disk)

    def _judged_otherwise(self, pool: Pool, recorded_bytes: int) -> bool:
        """Whether somebody who knows only the record, as a controller does, takes the pool for fuller or emptier."""
        return self._ledger.space(replace(pool, free_bytes=recorded_bytes)) is not self._ledger.space(pool)

    async def _tell(self, disk: Disk, condition: Condition) -> Disk:
        told = await self._records.change(disk, lambda now: with_health(now, condition))
        if told.status.conditions != disk.status.conditions:
            log.warning("disk %s (%s): %s", disk.meta.name, disk.status.path, condition.message)
        return told

    async def _all_is_well(self, disk: Disk) -> Disk:
        def told(now: Disk) -> Disk:
            conditions = without_condition(now.status.conditions, ATTENTION)
            return replace(now, status=replace(now.status, conditions=conditions))

        return await self._records.change(disk, told)

    async def _fail(self, disk: Disk, error: QuarryError) -> None:
        text, why = str(error), error.why if isinstance(error, Refused) else Why.FAILED
        condition = refused_for(USABLE, why, text)

        def failed(now: Disk) -> Disk:
            is_gone = now.status.phase is DiskPhase.MISSING and kind(now) == FILE and why is Why.POOL_LOST
            phase = now.status.phase if is_gone or now.status.phase is DiskPhase.FORMATTING else DiskPhase.FAILED
            told = with_condition(without_condition(now.status.conditions, ATTENTION), condition)
            return replace(now, status=replace(now.status, phase=phase, message=text, conditions=told))

        try:
            changed = await self._records.change(disk, failed) != disk
        finally:
            self._ledger.remove_pool(disk.meta.name)
        if changed:
            log.error("disk %s (%s) is not usable: %s", disk.meta.name, disk.status.path, error)


def is_in_service(disk: Disk) -> bool:
    """Whether the disk's pool is to be served: it is claimed, or not released yet."""
    if disk.status.phase is DiskPhase.RELEASING:
        return False
    is_there = kind(disk) != FILE or disk.status.phase is not DiskPhase.MISSING
    return bool(disk.spec.claimed) or (bool(disk.status.pool.uuid) and is_there)
