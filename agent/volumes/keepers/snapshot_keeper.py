"""Keeps snapshots right in the background: what a crash left, what was lost, and deletions that had to wait."""

from __future__ import annotations

import logging

from agent.errors import QuarryError
from agent.model import Snapshot, SnapshotPhase, Volume
from agent.pools.ledger import Ledger
from agent.spdk.client import Rpc
from agent.store.interface import Store
from agent.tasks.operations import Operations
from agent.tasks.work import Work
from agent.volumes.service.internal_snapshots import hide_when_cloned
from agent.volumes.service.lineage import Lineage
from agent.volumes.service.snapshots import guard_key
from agent.volumes.target.observed import Observed
from agent.volumes.target.seeding import drop_helper
from agent.volumes.target.snapshot_reconcile import SnapshotReconciler

log = logging.getLogger(__name__)


class SnapshotKeeper:
    """`start` before the target is brought up, then `brought_up` and `audited` with what was read of it."""

    def __init__(
        self,
        rpc: Rpc,
        store: Store,
        ledger: Ledger,
        reconciler: SnapshotReconciler,
        lineage: Lineage,
        operations: Operations,
    ) -> None:
        self._rpc = rpc
        self._store = store
        self._ledger = ledger
        self._reconciler = reconciler
        self._lineage = lineage
        self._operations = operations
        self.hides = True
        """Whether internal snapshots that have served are hidden here; in a cluster the controller does it."""
        self._work = Work("snapshot", self._look_after, parallel=1)
        lineage.look_after = self._work.stir

    async def start(self) -> None:
        """Count what is stored."""
        snapshots = await self._store.list(Snapshot)
        self._lineage.load(snapshots, await self._store.list(Volume))
        for each in snapshots:
            self._ledger.reserve(each.meta.name, each.spec.disk, each.spec.size_bytes, each.spec.provisioning)

    async def stop(self) -> None:
        await self._work.stop()

    async def brought_up(self, observed: Observed) -> None:
        """A target was read: before any volume is settled."""
        self._lineage.reset(observed.parents)
        for name in observed.helpers:
            log.info("removing %s, left by an operation that was interrupted", name)
            await drop_helper(self._rpc, name)
        known = {each.meta.name for each in await self._store.list(Snapshot)}
        if orphans := sorted(observed.snapshots.keys() - known):
            log.error(
                "%d snapshots in the pools are of no known one and are left alone: %s",
                len(orphans),
                ", ".join(orphans[:20]),
            )

        for name in await self._changed(observed):
            try:
                await self._look_after(name)
            except QuarryError as error:
                log.info("snapshot %s could not be judged: %s", name, error)

    async def audited(self, observed: Observed) -> None:
        """Have those looked at whose data are not as recorded, and all that are waiting to go."""
        self._work.stir(*await self._changed(observed))
        self._lineage.stir()

    async def _changed(self, observed: Observed) -> list[str]:
        """Snapshots that were lost, or have come back."""
        changed = []
        for each in await self._store.list(Snapshot):
            recorded = each.status.lvols[0][1] if each.status.lvols else ""
            here = self._ledger.pool(each.spec.disk) is not None
            there = observed.snapshots.get(each.meta.name, "") == recorded
            failed = each.status.phase is SnapshotPhase.FAILED
            if here and recorded and there == failed and not each.meta.deleting:
                changed.append(each.meta.name)
        return changed

    async def _look_after(self, name: str) -> None:
        await self._operations.run(guard_key(name), lambda: self._settle(name))

    async def _settle(self, name: str) -> None:
        snapshot = await self._store.get(Snapshot, name)
        if snapshot is None:
            return
        if self.hides and snapshot.spec.owner and not snapshot.meta.deleting:
            snapshot = await hide_when_cloned(self._store, self._operations, self._reconciler, snapshot)
        settled = await self._reconciler.settle(snapshot)
        if settled is not None and settled.status.message != snapshot.status.message and settled.status.message:
            log.info("snapshot %s: %s", name, settled.status.message)
