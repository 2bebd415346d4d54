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

from agent.config import PoolSettings
from agent.errors import FailedPrecondition, QuarryError, RpcError, TransportClosed, Unavailable
from agent.model import Condition, ConditionStatus, Disk, DiskPhase, PoolStatus, StorageNode
from agent.spdk import bdev, lvol
from agent.spdk.client import Rpc
from agent.store.interface import Store
from agent.volumes.access import LOAD_TIMEOUT_S, DiskAccess, kind
from agent.volumes.placement import Ledger, Pool
from agent.volumes.space import Space, describe

log = logging.getLogger(__name__)

SPACE_LOW = "SpaceLow"
"""Condition of a Disk: its pool is short of space; the reason is the name of agent.volumes.space.Space."""

_TIB = 1 << 40


class Pools:
    """Ensures pools and tells the ledger what they have. `access` is how disks of each `access.kind` are reached."""

    def __init__(
        self,
        rpc: Rpc,
        store: Store,
        ledger: Ledger,
        node: StorageNode,
        settings: PoolSettings,
        access: Mapping[str, DiskAccess],
    ) -> None:
        self._rpc = rpc
        self._store = store
        self._ledger = ledger
        self._node = node.meta.name
        self._zone = node.status.zone
        self._settings = settings
        self._access = access
        self._refreshing = asyncio.Lock()

    async def ensure_all(self) -> list[Disk]:
        """Bring up every claimed disk; those that fail say why in their status. Returns the ready ones."""
        claimed = [
            disk for disk in await self._store.list(Disk) if disk.spec.claimed and disk.status.node == self._node
        ]
        bases = await asyncio.gather(*(self._ensure_base(disk) for disk in claimed))
        await bdev.wait_for_examine(self._rpc, timeout_s=LOAD_TIMEOUT_S)
        disks = [disk for disk, error in bases if error is None]
        for disk, error in bases:
            if error is not None:
                await self._fail(disk, error)
        ready = await asyncio.gather(*(self._ensure_pool(disk) for disk in disks))
        return [disk for disk in ready if disk is not None]

    async def refresh(self, *, record: bool = True) -> list[Disk]:
        """Look at the space of every pool again, one call to the target. Returns the disks whose pool is there.

        `record` stores what is free now; without it a Disk is stored only when its pool passed a threshold, went or
        came back, so that looking often costs no writes.
        """
        async with self._refreshing:
            as_of = self._ledger.now
            found = {each.name: each for each in await lvol.list_lvstores(self._rpc)}
            present = []
            for disk in await self._store.list(Disk):
                pool, info = disk.status.pool, found.get(disk.pool_name)
                if disk.status.node != self._node or not disk.spec.claimed or not pool.uuid:
                    continue
                if info is not None and info.uuid == pool.uuid:
                    present.append(await self._record(disk, info, as_of, always=record))
                elif disk.status.phase is DiskPhase.READY:
                    await self._fail(disk, _gone(disk))
            return present

    async def _ensure_base(self, disk: Disk) -> tuple[Disk, QuarryError | None]:
        try:
            await self._reach(disk).attach(disk)
        except TransportClosed:
            raise
        except QuarryError as error:
            return disk, error
        return disk, None

    def _reach(self, disk: Disk) -> DiskAccess:
        access = self._access.get(kind(disk))
        if access is None:
            raise FailedPrecondition(f"disk {disk.meta.name}: this agent has no driver {disk.spec.driver!r}")
        return access

    async def _ensure_pool(self, disk: Disk) -> Disk | None:
        try:
            info = await lvol.get_lvstore(self._rpc, disk.pool_name)
            before = disk.status.pool.uuid
            if before and (info is None or info.uuid != before):
                raise FailedPrecondition(
                    f"{disk.status.path} held pool {before} and now holds {info.uuid if info else 'none'}; it is left "
                    "alone. Give the disk back, or remove its volumes and name it differently"
                )
            if info is None:
                await self._create_pool(disk)
                info = await lvol.get_lvstore(self._rpc, disk.pool_name)
            if info is None:
                raise RpcError("bdev_lvol_create_lvstore", 0, f"pool {disk.pool_name} is missing after its creation")
            stored = await self._store.get(Disk, disk.meta.name)
            return await self._record(stored or disk, info)
        except TransportClosed:
            raise
        except QuarryError as error:
            await self._fail(disk, error)
            return None

    async def _create_pool(self, disk: Disk) -> None:
        if disk.status.phase is not DiskPhase.FORMATTING:
            await self._reach(disk).require_blank(disk)
            formatting = replace(disk, status=replace(disk.status, phase=DiskPhase.FORMATTING, message=""))
            disk = await self._store.update(formatting)
        log.info("creating pool %s on %s", disk.pool_name, disk.status.path)
        try:
            await lvol.create_lvstore(
                self._rpc,
                disk.bdev_name,
                disk.pool_name,
                cluster_bytes=self._settings.cluster_bytes,
                md_ratio=metadata_ratio(disk.status.size_bytes, self._settings),
                clear_method="none",
                timeout_s=LOAD_TIMEOUT_S,
            )
        except RpcError:
            # Answered: nothing is half done. The mark would let whatever comes onto the disk later be overwritten.
            await self._store.update(replace(disk, status=replace(disk.status, phase=DiskPhase.FAILED)))
            raise

    async def _record(
        self, disk: Disk, info: lvol.LvstoreInfo, as_of: int | None = None, *, always: bool = True
    ) -> Disk:
        pool = Pool(
            disk=disk.meta.name,
            node=self._node,
            tier=disk.spec.tier_override or disk.status.tier,
            size_bytes=info.size_bytes,
            free_bytes=info.free_bytes,
            cluster_bytes=info.cluster_size,
            zone=self._zone,
        )
        self._ledger.set_pool(pool, as_of)
        low = low_space(disk, self._ledger.space(pool), info)
        if always or disk.status.phase is not DiskPhase.READY:
            kept = PoolStatus(info.uuid, info.size_bytes, info.free_bytes, info.cluster_size)
        else:
            kept = disk.status.pool
        status = replace(disk.status, phase=DiskPhase.READY, message="", pool=kept, conditions=(low,))
        if status == disk.status:
            return disk
        if low not in disk.status.conditions and (low.status is ConditionStatus.TRUE or disk.status.conditions):
            log.log(logging.WARNING if low.status is ConditionStatus.TRUE else logging.INFO, "%s", low.message)
        return await self._store.update(replace(disk, status=status))

    async def _fail(self, disk: Disk, error: QuarryError) -> None:
        log.error("disk %s (%s) is not usable: %s", disk.meta.name, disk.status.path, error)
        self._ledger.remove_pool(disk.meta.name)
        stored = await self._store.get(Disk, disk.meta.name) or disk
        phase = stored.status.phase if stored.status.phase is DiskPhase.FORMATTING else DiskPhase.FAILED
        await self._store.update(replace(stored, status=replace(stored.status, phase=phase, message=str(error))))


def _gone(disk: Disk) -> Unavailable:
    return Unavailable(f"pool {disk.pool_name} is gone from the target: the disk failed or was removed")


def low_space(disk: Disk, space: Space, info: lvol.LvstoreInfo) -> Condition:
    """The condition SpaceLow of a disk. It stays as it is, figures included, until its pool passes a threshold."""
    reason = space.name.capitalize()
    for known in disk.status.conditions:
        if known.type == SPACE_LOW and known.reason == reason:
            return known
    status = ConditionStatus.FALSE if space is Space.AMPLE else ConditionStatus.TRUE
    message = describe(disk.pool_name, space, info.size_bytes, info.free_bytes)
    return Condition(SPACE_LOW, status, reason, message, time.time())


def metadata_ratio(size_bytes: int, settings: PoolSettings) -> int:
    """`num_md_pages_per_cluster_ratio` (a percentage) that gives a pool of `size_bytes` its metadata pages.

    As few as will do: pages bound the number of volumes, but each is read when the pool is loaded after a crash.
    """
    pages = settings.metadata_pages_min + settings.metadata_pages_per_tib * size_bytes // _TIB
    clusters = max(1, size_bytes // settings.cluster_bytes)
    return max(1, -(-pages * 100 // clusters))
