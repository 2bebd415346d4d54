"""Pools: the base bdev and the lvstore of every claimed disk of this node.

Known pools are imported, never made again. A new one is made only on a disk proven blank, and the Disk says so
(phase Formatting) durably before the first byte is written: a crash in between leaves half a label that is ours.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from pathlib import Path

from agent.config import PoolSettings
from agent.disks import files
from agent.errors import FailedPrecondition, QuarryError, RpcError, TransportClosed
from agent.model import Disk, DiskPhase, PoolStatus, StorageNode
from agent.spdk import bdev, lvol
from agent.spdk.client import Rpc
from agent.store.interface import Store
from agent.volumes.placement import Ledger, Pool

log = logging.getLogger(__name__)

LOAD_TIMEOUT_S = 600.0
"""How long a pool may take to load: after a crash every metadata page is read (see docs/decisions/0002)."""

_TIB = 1 << 40


class Pools:
    """Ensures pools and tells the ledger what they have."""

    def __init__(self, rpc: Rpc, store: Store, ledger: Ledger, node: StorageNode, settings: PoolSettings) -> None:
        self._rpc = rpc
        self._store = store
        self._ledger = ledger
        self._node = node.meta.name
        self._zone = node.status.zone
        self._settings = settings

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

    async def refresh(self) -> list[Disk]:
        """Read the space of every ready pool again."""
        ready = [
            disk
            for disk in await self._store.list(Disk)
            if disk.status.node == self._node and disk.status.phase is DiskPhase.READY
        ]
        found = await asyncio.gather(*(lvol.get_lvstore(self._rpc, disk.pool_name) for disk in ready))
        return [await self._record(disk, info) for disk, info in zip(ready, found, strict=True) if info]

    async def _ensure_base(self, disk: Disk) -> tuple[Disk, QuarryError | None]:
        try:
            if await bdev.get(self._rpc, disk.bdev_name) is None:
                await bdev.aio_create(
                    self._rpc, disk.bdev_name, disk.status.path, disk.status.block_bytes, timeout_s=LOAD_TIMEOUT_S
                )
        except RpcError as error:
            if await bdev.get(self._rpc, disk.bdev_name) is None:
                return disk, error
        return disk, None

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
            await asyncio.to_thread(files.require_blank, Path(disk.status.path))
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

    async def _record(self, disk: Disk, info: lvol.LvstoreInfo) -> Disk:
        pool = PoolStatus(
            uuid=info.uuid,
            size_bytes=info.size_bytes,
            free_bytes=info.free_bytes,
            cluster_bytes=info.cluster_size,
        )
        self._ledger.set_pool(
            Pool(
                disk=disk.meta.name,
                node=self._node,
                tier=disk.spec.tier_override or disk.status.tier,
                size_bytes=pool.size_bytes,
                free_bytes=pool.free_bytes,
                cluster_bytes=pool.cluster_bytes,
                zone=self._zone,
            )
        )
        status = replace(disk.status, phase=DiskPhase.READY, message="", pool=pool)
        if status == disk.status:
            return disk
        return await self._store.update(replace(disk, status=status))

    async def _fail(self, disk: Disk, error: QuarryError) -> None:
        log.error("disk %s (%s) is not usable: %s", disk.meta.name, disk.status.path, error)
        self._ledger.remove_pool(disk.meta.name)
        stored = await self._store.get(Disk, disk.meta.name) or disk
        phase = stored.status.phase if stored.status.phase is DiskPhase.FORMATTING else DiskPhase.FAILED
        await self._store.update(replace(stored, status=replace(stored.status, phase=phase, message=str(error))))


def metadata_ratio(size_bytes: int, settings: PoolSettings) -> int:
    """`num_md_pages_per_cluster_ratio` (a percentage) that gives a pool of `size_bytes` its metadata pages.

    As few as will do: pages bound the number of volumes, but each is read when the pool is loaded after a crash.
    """
    pages = settings.metadata_pages_min + settings.metadata_pages_per_tib * size_bytes // _TIB
    clusters = max(1, size_bytes // settings.cluster_bytes)
    return max(1, -(-pages * 100 // clusters))
