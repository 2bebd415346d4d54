"""Closing the difference between desired and observed for one snapshot on this node's target.

The caller holds the snapshot's guard; the locks on lvols (agent.volumes.service.lineage) are taken here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace

from agent.errors import Busy, FailedPrecondition, QuarryError, RpcError, Unavailable
from agent.model import POOL_PREFIX, Snapshot, SnapshotPhase, SnapshotStatus, Volume
from agent.pools.disk_conditions import IF_LOST
from agent.pools.ledger import Ledger
from agent.pools.lost_disks import LostDisks
from agent.pools.zeroing import Zeroing
from agent.spdk import bdev, lvol
from agent.spdk.client import Rpc
from agent.store.interface import Store
from agent.volumes.rules.names import REPLICA
from agent.volumes.rules.settling import Quiesce
from agent.volumes.rules.snapshot_plan import Gone, Keep, SnapshotSeen, removal
from agent.volumes.service.lineage import Lineage
from agent.volumes.target.actions import DELETE_TIMEOUT_S
from agent.volumes.target.reconcile import Reconciler
from agent.volumes.target.refusals import pool_refusal
from agent.volumes.target.seeding import snapshot_seen

"""For the block nothing is written to the volume's filesystem, and the device has all that was written before."""

log = logging.getLogger(__name__)

ATTEMPTS = 4
RETRY_DELAY_S = 0.02


class SnapshotReconciler:
    """Takes, judges and deletes snapshots. Nothing here decides whether one is wanted."""

    def __init__(
        self,
        rpc: Rpc,
        store: Store,
        ledger: Ledger,
        reconciler: Reconciler,
        lineage: Lineage,
        zeroing: Zeroing,
        lost: LostDisks,
    ) -> None:
        self._rpc = rpc
        self._store = store
        self._ledger = ledger
        self._reconciler = reconciler
        self._lineage = lineage
        self._zeroing = zeroing
        self._lost = lost
        self.forget: Callable[[Snapshot], Awaitable[None]] = self._delete_record
        """Called when the data of a deleted snapshot are gone."""

    async def _delete_record(self, snapshot: Snapshot) -> None:
        await self._store.delete(Snapshot, snapshot.meta.name)

    async def take(self, snapshot: Snapshot, volume: Volume, quiesce: Quiesce) -> Snapshot:
        """Cut the snapshot, unless it is cut already, and record it. The caller holds the volume's guard.

        An error other than Unavailable and DeadlineExceeded means that there is none. Raises ResourceExhausted when
        the pool refuses, Unavailable when the target is away or the filesystem did not stand still.
        """
        await self.ready(snapshot)
        name, of = snapshot.meta.name, volume.meta.name
        async with self._lineage.lvols.hold(of):
            seen = await self.read(snapshot)
            if seen is not None and volume.spec.attachments:
                # Cut by a call that was cut off itself: writers may have been let go before it was carried out.
                await self.uncut(snapshot, of)
                seen = None
            cut_at = snapshot.meta.created_at
            if seen is None:
                cut_at, seen = await self._cut_still(snapshot, volume, quiesce)
            self._lineage.cut(of, name)
        return await self.record(snapshot, seen, cut_at)

    async def record(self, snapshot: Snapshot, seen: SnapshotSeen, cut_at: float) -> Snapshot:
        """Write down that it was cut."""
        status = replace(
            snapshot.status,
            phase=SnapshotPhase.READY,
            size_bytes=seen.size_bytes,
            created_at=cut_at,
            lvols=((REPLICA, seen.uuid),),
            message="",
            observed=snapshot.meta.generation,
            failure=None,
        )
        return await self._store.update(replace(snapshot, status=status))

    async def hide(self, snapshot: Snapshot) -> Snapshot:
        """Mark it deleted: for callers it is gone."""
        if not snapshot.meta.deleting:
            snapshot = await self._store.update(replace(snapshot, meta=replace(snapshot.meta, deleting=True)))
            self._lineage.add(snapshot)
        return snapshot

    async def settle(self, snapshot: Snapshot) -> Snapshot | None:
        """Judge a snapshot, delete one that is to go; None when it is gone, else as recorded now.

        One whose data are not there, or whose disk is lost, is recorded as Failed, never made anew.
        """
        why = await self._why_lost(snapshot)
        if snapshot.meta.deleting:
            reason = "" if why else await self._remove(snapshot)
            if not reason:
                await self.forget(snapshot)
                self._ledger.release(snapshot.meta.name)
                self._lineage.forget(snapshot)
                return None
            status = replace(snapshot.status, phase=SnapshotPhase.DELETING, message=f"kept: {reason}")
        elif snapshot.status.phase is SnapshotPhase.PENDING:
            return snapshot
        elif why:
            status = replace(snapshot.status, phase=SnapshotPhase.FAILED, message=f"its data are lost: {why}")
        else:
            await self.ready(snapshot)
            status = _judged(snapshot, await self.read(snapshot))
        status = replace(status, observed=snapshot.meta.generation, failure=None)
        if status == snapshot.status:
            return snapshot
        return await self._store.update(replace(snapshot, status=status))

    def _name(self, snapshot: Snapshot) -> str:
        return f"{POOL_PREFIX}{snapshot.spec.disk}/{snapshot.meta.name}"

    async def ready(self, snapshot: Snapshot) -> None:
        """Return when its disk can be asked. Raises Unavailable, FailedPrecondition when the disk is lost."""
        await self._reconciler.ready()
        if self._ledger.pool(disk := snapshot.spec.disk) is None:
            if why := await self._why_lost(snapshot):
                raise FailedPrecondition(f"the data of snapshot {snapshot.meta.name} are lost: {why}")
            raise Unavailable(
                f"disk {disk} of snapshot {snapshot.meta.name} is not ready; repeat the call when it is, or "
                + IF_LOST.format(disk)
            )

    async def _why_lost(self, snapshot: Snapshot) -> str:
        disk = snapshot.spec.disk
        return "" if self._ledger.pool(disk) is not None else await self._lost.why(disk)

    async def read(self, snapshot: Snapshot) -> SnapshotSeen | None:
        """Its lvol as it is now."""
        return snapshot_seen(await bdev.get(self._rpc, self._name(snapshot)))

    async def _cut_still(self, snapshot: Snapshot, volume: Volume, quiesce: Quiesce) -> tuple[float, SnapshotSeen]:
        cut_at, seen = 0.0, None
        try:
            async with quiesce(volume):
                cut_at = time.time()
                seen = await self.cut(snapshot, volume)
        except QuarryError:
            if seen is not None:  # it was cut, but the filesystem did not stand still all the time
                await self.uncut(snapshot, volume.meta.name)
            raise
        return cut_at, seen

    async def cut(self, snapshot: Snapshot, volume: Volume) -> SnapshotSeen:
        """Cut it now, whatever is written meanwhile. The caller holds the volume's lvol."""
        source = f"{POOL_PREFIX}{snapshot.spec.disk}/{volume.meta.name}"
        for attempt in range(ATTEMPTS):
            try:
                uuid = await lvol.snapshot(self._rpc, source, snapshot.meta.name)
                return SnapshotSeen(uuid, volume.status.size_bytes)
            except RpcError as error:
                # The text of a refusal is no fact: the state tells what really happened.
                if (seen := await self.read(snapshot)) is not None:
                    return seen
                if await bdev.get(self._rpc, source) is None:
                    raise FailedPrecondition(f"volume {volume.meta.name} has no data to take a snapshot of") from error
                if attempt == ATTEMPTS - 1:
                    pool = POOL_PREFIX + snapshot.spec.disk
                    raise pool_refusal(pool, "a snapshot", error) from error
            await asyncio.sleep(RETRY_DELAY_S * 2**attempt)
        raise Unavailable("not reached")

    async def uncut(self, snapshot: Snapshot, volume: str) -> None:
        """Delete one that nobody was told of, if it is there; the volume, its only clone, takes its data back."""
        try:
            async with self._zeroing.deleting(snapshot.spec.disk):
                await lvol.delete(self._rpc, self._name(snapshot), timeout_s=DELETE_TIMEOUT_S)
        except RpcError:
            if await self.read(snapshot) is not None:
                raise
        if self._lineage.parent_of(volume) == snapshot.meta.name:
            self._lineage.gone(snapshot.meta.name, volume)

    async def _remove(self, snapshot: Snapshot) -> str:
        """Delete the lvol; returns why it has to stay, empty when it is gone."""
        await self.ready(snapshot)
        name = snapshot.meta.name
        async with self._lineage.lvols.hold(name):
            for _ in range(ATTEMPTS):
                step = removal(await self.read(snapshot), self._lineage.waiting_for(name))
                if isinstance(step, Gone):
                    return ""
                if isinstance(step, Keep):
                    return step.reason
                # A clone whose deletion is under way is not shown, but still has the snapshot open: SPDK would refuse
                # to delete that, and yet let go of it, its clusters lost to the pool.
                async with AsyncExitStack() as held:
                    for clone in sorted({*self._lineage.children_of(name), step.heir} - {""}):
                        await held.enter_async_context(self._lineage.lvols.hold(clone))
                    if removal(await self.read(snapshot), self._lineage.waiting_for(name)) == step:
                        await self._delete(snapshot, step.heir)
        raise Busy(f"snapshot {name} is being changed; repeat the call")

    async def _delete(self, snapshot: Snapshot, heir: str) -> None:
        try:
            async with self._zeroing.deleting(snapshot.spec.disk):
                await lvol.delete(self._rpc, self._name(snapshot), timeout_s=DELETE_TIMEOUT_S)
        except RpcError as error:
            if await self.read(snapshot) is not None:
                return  # looked at anew
            log.error("the target let go of snapshot %s without freeing its data: %s", snapshot.meta.name, error)
        self._lineage.gone(snapshot.meta.name, heir)


def _judged(snapshot: Snapshot, seen: SnapshotSeen | None) -> SnapshotStatus:
    """READY when the lvol that was recorded is there, else FAILED."""
    recorded = snapshot.status.lvols[0][1] if snapshot.status.lvols else ""
    if seen is not None and seen.uuid == recorded:
        return replace(snapshot.status, phase=SnapshotPhase.READY, message="")
    what = f"its data are lost: lvol {recorded} is not in pool {POOL_PREFIX}{snapshot.spec.disk}"
    return replace(snapshot.status, phase=SnapshotPhase.FAILED, message=what)
