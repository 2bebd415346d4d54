"""What the free clusters of pools hold: none is given out with what somebody else wrote to it (decision 0011).

The target records the deletion of an lvol first and zeroes its clusters after that. So a note is in the record of the
disk (`PoolStatus.free_space`) before a deletion is asked for, and stays until all have been answered. A pool that was
loaded anew while the note stood may have data in its free clusters: before anybody can write to it all of them are
held by lvols of ours, whose deletion zeroes them, one after the other.

So is a new pool on a disk that could not be zeroed before it was made (decision 0012).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from agent.errors import QuarryError, RpcError, Unavailable
from agent.model import Condition, ConditionStatus, Disk, FreeSpace
from agent.pools.disk_conditions import ZEROED, with_condition, without_condition
from agent.pools.disk_records import DiskRecords
from agent.pools.names import held_name, is_held_name
from agent.spdk import bdev, lvol
from agent.spdk.answers import MIB
from agent.spdk.client import Rpc
from agent.tasks.work import Work

log = logging.getLogger(__name__)

HOLD_BYTES = 1 << 30
"""What one lvol holds at least: it comes free at once, and a deletion of so much is waited for at a restart."""

HOLDS_MAX = 64
"""Each takes a metadata page, and is told as one step."""

WAIT_S = 20.0
"""How long hosts wait for a pool that is zeroed after an interruption. Afterwards it grows while they use it."""

DELETE_TIMEOUT_S = 3600.0

RETRY_MAX_S = 5.0


@dataclass(slots=True)
class _Pool:
    """What this process knows of one pool."""

    running: int = 0
    """Deletions that were asked for and have not ended."""
    noted: bool = False
    """The record says DELETING."""
    looked_at: bool = False
    """Since it was loaded: what is free is zeroed or held."""
    interrupted: bool = False
    """Found noted and not loaded, whether that could be recorded or not."""
    unsure: bool = False
    """The target may be zeroing for somebody who does not wait for it: it has to be asked."""
    held_bytes: int = 0
    """What was held when zeroing began."""
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    clean: asyncio.Event = field(default_factory=asyncio.Event)


class Zeroing:
    """Of the pools of this node. `linger_s`: without any deletion for so long the note is taken back."""

    def __init__(self, rpc: Rpc, records: DiskRecords, linger_s: float) -> None:
        self._rpc = rpc
        self._records = records
        self._linger_s = linger_s
        self._pools: dict[str, _Pool] = {}
        self._work = Work("zeroing", self._finish, parallel=0, retry_max_s=RETRY_MAX_S)

    async def stop(self) -> None:
        """Take back the notes of pools where nothing is under way."""
        await self._work.stop()
        for name, pool in self._pools.items():
            if pool.noted and not pool.running and not pool.unsure:
                with contextlib.suppress(QuarryError):
                    await self._take_back(name, pool)

    # --- deletions ---

    @asynccontextmanager
    async def deleting(self, disk: str) -> AsyncIterator[_Pool]:
        """For the block lvols of this disk's pool are deleted.

        It ends in an error, or sets `unsure`, unless the target answered that all is done. Unavailable, before the
        block, when the note cannot be written.
        """
        pool = self._pool(disk)
        pool.running += 1
        try:
            async with pool.writing:
                if not pool.noted:
                    await self._note(disk)
                    pool.noted = True
            yield pool
        except BaseException:
            pool.unsure = True
            raise
        finally:
            pool.running -= 1
            if not pool.running:
                self._work.stir(disk)

    async def require_clean(self, disk: Disk) -> None:
        """Unavailable while deletions are under way, or free space is still to be zeroed."""
        pool = self._pool(disk.meta.name)
        if pool.noted and not pool.running and not pool.unsure:
            await self._take_back(disk.meta.name, pool)
        now = await self._records.get(disk.meta.name)
        if now is not None and now.status.pool.free_space is not FreeSpace.ZEROED:
            raise Unavailable(f"what was deleted on disk {disk.meta.name} is still being zeroed; it goes on by itself")

    # --- pools that are loaded ---

    async def before_attach(self) -> None:
        """To be awaited before pools are loaded: a note on a pool that is not loaded means an interruption.

        That goes for all pools of the node: one attachment may load several.
        """
        loaded = {each.name for each in await lvol.list_lvstores(self._rpc)}
        for disk in await self._records.list():
            pool = self._pool(disk.meta.name)
            pool.looked_at = pool.looked_at and disk.pool_name in loaded
            if disk.pool_name not in loaded and disk.status.pool.free_space is FreeSpace.DELETING:
                async with pool.writing:
                    pool.noted, pool.interrupted = False, True
                    with contextlib.suppress(Unavailable):  # a store that takes nothing now stops no pool that is there
                        await self._records.change(disk, lambda now: _with(now, FreeSpace.UNKNOWN))

    async def loaded(self, disk: Disk, *, unknown: bool) -> Disk:
        """The pool is loaded and nobody can write to it yet: hold what is free, unless it is known to be zeroed.

        `unknown`: nothing is known of its past. Hosts of a pool with a past wait, for at most `WAIT_S`.
        """
        name, pool = disk.meta.name, self._pool(disk.meta.name)
        async with pool.writing:
            disk = await self._records.get(name) or disk  # as `before_attach` has left it
            if unknown and pool.looked_at:  # it is the record that was lost
                known = FreeSpace.DELETING if pool.noted else FreeSpace.ZEROED
                return await self._records.change(disk, lambda now: _with(now, known))
            if unknown:
                disk = await self._records.change(disk, lambda now: _with(now, FreeSpace.UNKNOWN))
            is_unknown = pool.interrupted or disk.status.pool.free_space is FreeSpace.UNKNOWN
            if is_unknown:
                disk = await self._hold(disk)
                pool.interrupted = False
            pool.looked_at = True
            if disk.status.pool.free_space is FreeSpace.ZEROED:
                return disk
            pool.noted, pool.unsure = disk.status.pool.free_space is FreeSpace.DELETING, True
            pool.clean.clear()
        self._work.stir(name)
        if is_unknown and not unknown:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WAIT_S):
                    await pool.clean.wait()
        return await self._records.get(name) or disk

    async def grown(self, disk: Disk) -> Disk:
        """The pool has got space that may hold anything, and may be written to meanwhile: hold what is free."""
        pool = self._pool(disk.meta.name)
        async with pool.writing:
            pool.looked_at = False
        return await self.loaded(disk, unknown=True)

    def lets_in(self, disk: Disk) -> bool:
        """Whether the pool may serve, as far as its free space is concerned."""
        return self._pool(disk.meta.name).looked_at

    async def _hold(self, disk: Disk) -> Disk:
        """Hold every free cluster. What cannot be held stays known as UNKNOWN."""
        name, held = disk.meta.name, 0
        info = await self._info(disk.pool_name)
        most = max(HOLD_BYTES, -(-info.free_bytes // HOLDS_MAX))
        while size := min(most, info.free_bytes) // max(info.cluster_size, MIB) * max(info.cluster_size, MIB):
            try:
                await lvol.create(
                    self._rpc,
                    disk.pool_name,
                    held_name(uuid.uuid4().hex),
                    size,
                    thin=False,
                    clear_method="write_zeroes",
                )
                held += size
            except RpcError as error:
                if size <= max(info.cluster_size, MIB):
                    log.error("free space of pool %s cannot be held to be zeroed: %s", disk.pool_name, error.message)
                    break
                most = size // 2
            info = await self._info(disk.pool_name)
        self._pool(name).held_bytes = held
        if held:
            log.warning(
                "pool %s: %d MiB of free space may hold data of others and are zeroed before anybody gets them",
                disk.pool_name,
                held // MIB,
            )
            disk = await self._tell(disk, 0, held)
        if info.free_clusters:
            return disk
        return await self._records.change(disk, lambda now: _with(now, FreeSpace.DELETING))

    # --- in the background ---

    async def _finish(self, name: str) -> None:
        """Zero what is held, and take the note back once nothing is under way."""
        pool, disk = self._pool(name), await self._records.get(name)
        if pool.running or disk is None:
            return
        if pool.unsure:
            await self._zero_held(disk, pool)
        elif pool.noted:
            await asyncio.sleep(self._linger_s)
        if not pool.running:
            await self._take_back(name, pool)

    async def _zero_held(self, disk: Disk, pool: _Pool) -> None:
        held = [each for each in await lvol.list_lvols(self._rpc, disk.pool_name) if is_held_name(each.name)]
        cluster_bytes = (await self._info(disk.pool_name)).cluster_size
        left = sum(each.num_allocated_clusters for each in held) * cluster_bytes
        pool.held_bytes = max(pool.held_bytes, left)
        for each in held:
            await self._tell(disk, pool.held_bytes - left, pool.held_bytes)
            try:
                await lvol.delete(self._rpc, each.alias, timeout_s=DELETE_TIMEOUT_S)
            except RpcError:
                if await bdev.get(self._rpc, each.alias) is not None:
                    raise
            left -= each.num_allocated_clusters * cluster_bytes

    async def _take_back(self, name: str, pool: _Pool) -> None:
        async with pool.writing:
            disk = await self._records.get(name)
            if disk is None or pool.running:
                return
            if pool.unsure:
                await self._require_nothing_under_way(disk)
            was_told = any(each.type == ZEROED for each in disk.status.conditions)
            disk = await self._records.change(disk, _cleaned)
            pool.noted = pool.unsure = False
            pool.clean.set()
        if was_told:
            log.info("pool %s: all free space is zeroed", disk.pool_name)

    async def _require_nothing_under_way(self, disk: Disk) -> None:
        """Clusters that are neither free nor an lvol's are being zeroed: that is all the target shows of a deletion."""
        # In this order: what is allocated in between looks like something under way, never hides it.
        lvols, info = await asyncio.gather(
            lvol.list_lvols(self._rpc, disk.pool_name), lvol.get_lvstore(self._rpc, disk.pool_name)
        )
        if info is None:
            raise Unavailable(f"pool {disk.pool_name} is not loaded")
        known = sum(each.num_allocated_clusters for each in lvols)
        if info.total_data_clusters - info.free_clusters > known or any(is_held_name(each.name) for each in lvols):
            raise Unavailable(f"pool {disk.pool_name} is still zeroing what was deleted")

    async def _tell(self, disk: Disk, done: int, of: int) -> Disk:
        percent = 100 * done // max(1, of)
        message = f"{percent} %: {done // MIB} of {of // MIB} MiB of free space are zeroed; the rest is given to nobody"
        condition = Condition(ZEROED, ConditionStatus.FALSE, "Zeroing", message, time.time())

        def told(now: Disk) -> Disk:
            return replace(now, status=replace(now.status, conditions=with_condition(now.status.conditions, condition)))

        return await self._records.change(disk, told)

    async def _note(self, name: str) -> None:
        disk = await self._records.get(name)
        if disk is None:
            raise Unavailable(f"disk {name} has no record; repeat the call")
        await self._records.change(
            disk,
            lambda now: _with(now, FreeSpace.DELETING) if now.status.pool.free_space is FreeSpace.ZEROED else now,
        )

    async def _info(self, pool: str) -> lvol.LvstoreInfo:
        info = await lvol.get_lvstore(self._rpc, pool)
        if info is None:
            raise Unavailable(f"pool {pool} is not loaded")
        return info

    def _pool(self, disk: str) -> _Pool:
        return self._pools.setdefault(disk, _Pool())


def _with(disk: Disk, free_space: FreeSpace) -> Disk:
    return replace(disk, status=replace(disk.status, pool=replace(disk.status.pool, free_space=free_space)))


def _cleaned(disk: Disk) -> Disk:
    """Nothing is under way: of a pool that was loaded anew since, something else is known."""
    disk = replace(disk, status=replace(disk.status, conditions=without_condition(disk.status.conditions, ZEROED)))
    return _with(disk, FreeSpace.ZEROED) if disk.status.pool.free_space is FreeSpace.DELETING else disk
