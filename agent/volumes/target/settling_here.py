"""What a node of a cluster does about volumes and snapshots placed on it: settles what was wished and says so.

Level-triggered: whatever has another generation than was settled last, or failed, is settled.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TypeVar

from agent.errors import Conflict, FailedPrecondition, NotFound, QuarryError
from agent.model import Condition, ConditionStatus, Snapshot, SnapshotPhase, Volume, VolumePhase
from agent.pools.disk_conditions import with_condition, without_condition
from agent.pools.ledger import Ledger
from agent.store.following import Changes
from agent.tasks.operations import Operations
from agent.tasks.work import Work
from agent.volumes.rules import failures
from agent.volumes.rules.deletion import HELD, is_gone
from agent.volumes.rules.settling import Quiesce
from agent.volumes.service.lineage import Lineage, is_made
from agent.volumes.service.snapshots import guard_key
from agent.volumes.target.placed_here import PlacedHere
from agent.volumes.target.reconcile import Reconciler
from agent.volumes.target.snapshot_reconcile import SnapshotReconciler

log = logging.getLogger(__name__)

GUARD_S = 10.0

T = TypeVar("T", Volume, Snapshot)


class SettlingHere:
    """`start` after the target's keeper; it needs no connection to the target to be started."""

    def __init__(
        self,
        store: PlacedHere,
        ledger: Ledger,
        lineage: Lineage,
        operations: Operations,
        reconciler: Reconciler,
        cutter: SnapshotReconciler,
        quiesce: Quiesce,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._lineage = lineage
        self._operations = operations
        self._reconciler = reconciler
        self._cutter = cutter
        self._quiesce = quiesce
        reconciler.forget = self._volume_is_gone
        cutter.forget = self._snapshot_is_gone
        self._met: set[str] = set()
        """Volumes that were due since they are placed here, or since the start."""
        self._volume_work = Work("volume", self._settle_volume)
        self._snapshot_work = Work("snapshot", self._settle_snapshot)
        self._volumes = Changes(store, Volume, self._volume_work.stir)
        self._snapshots = Changes(store, Snapshot, self._snapshot_work.stir)

    def start(self) -> None:
        self._volumes.start()
        self._snapshots.start()

    async def stop(self) -> None:
        for each in (self._volumes, self._snapshots, self._volume_work, self._snapshot_work):
            await each.stop()

    @asynccontextmanager
    async def _failure_told(self, resource: T) -> AsyncIterator[None]:
        """Records what ends the block, for whoever waits for `resource`."""
        try:
            yield
        except (Conflict, NotFound):
            raise  # somebody else wrote: it is read again
        except QuarryError as error:
            status = replace(resource.status, observed=resource.meta.generation, failure=failures.record(error))
            if status != resource.status:
                log.warning("%s %s could not be settled: %s", type(resource).__name__, resource.meta.name, error)
                await self._store.update(replace(resource, status=status))
            raise

    # --- volumes ---

    async def _settle_volume(self, name: str) -> None:
        volume = await self._store.get(Volume, name)
        if volume is None or not self._store.has(volume):
            self._met.discard(name)
            self._ledger.release(name)
            if volume is not None:
                async with self._operations.guard.hold(name, wait_s=GUARD_S):
                    await self._reconciler.withdraw(name)
            return
        if not _is_due(volume):
            return
        async with self._operations.guard.hold(name, wait_s=GUARD_S):
            volume = await self._store.get(Volume, name)
            if volume is not None and _is_due(volume):
                await self._settle_held(volume)

    async def _settle_held(self, volume: Volume) -> None:
        spec = volume.spec
        if volume.meta.name not in self._met:
            self._met.add(volume.meta.name)
            if is_made(volume):
                # It may have come with its disk since the target was looked at.
                self._reconciler.mark_unknown(volume.meta.name)
        if not is_gone(volume):
            self._ledger.reserve(volume.meta.name, spec.placement[0].disk, spec.size_bytes, spec.provisioning)
        if spec.source is not None and not is_made(volume):
            self._lineage.expect(volume.meta.name, spec.source.snapshot)
        async with self._failure_told(volume):
            await self._reconciler.settle(_with_deletion_told(volume))

    async def _volume_is_gone(self, volume: Volume) -> None:
        """Say that the data are gone: the record is the controller's to remove."""
        status = replace(
            volume.status,
            phase=VolumePhase.DELETING,
            replicas=(),
            observed=volume.meta.generation,
            failure=None,
            message="",
        )
        if status != volume.status:
            await self._store.update(replace(volume, status=status))

    # --- snapshots ---

    async def _settle_snapshot(self, name: str) -> None:
        snapshot = await self._store.get(Snapshot, name)
        if snapshot is None or not self._store.has(snapshot):
            self._ledger.release(name)
            if snapshot is not None:
                self._lineage.forget(snapshot)
            return
        self._lineage.add(snapshot)
        if _is_due(snapshot):
            await self._operations.run(guard_key(name), lambda: self._settle_snapshot_held(name))

    async def _settle_snapshot_held(self, name: str) -> None:
        snapshot = await self._store.get(Snapshot, name)
        if snapshot is None or not _is_due(snapshot):
            return
        spec = snapshot.spec
        if not snapshot.meta.deleting:
            self._ledger.reserve(name, spec.disk, spec.size_bytes, spec.provisioning)
        async with self._failure_told(snapshot):
            if snapshot.meta.deleting or snapshot.status.phase is not SnapshotPhase.PENDING:
                await self._cutter.settle(snapshot)
            else:
                await self._take(snapshot)

    async def _take(self, snapshot: Snapshot) -> None:
        async with self._operations.guard.hold(snapshot.spec.volume, wait_s=GUARD_S):
            volume = await self._store.get(Volume, snapshot.spec.volume)
            if volume is None or not is_made(volume):
                raise FailedPrecondition(f"volume {snapshot.spec.volume} has no data to take a snapshot of")
            await self._cutter.take(snapshot, volume, self._quiesce)

    async def _snapshot_is_gone(self, snapshot: Snapshot) -> None:
        status = replace(
            snapshot.status,
            phase=SnapshotPhase.DELETING,
            lvols=(),
            observed=snapshot.meta.generation,
            failure=None,
            message="",
        )
        if status != snapshot.status:
            await self._store.update(replace(snapshot, status=status))


def _is_due(resource: Volume | Snapshot) -> bool:
    return resource.status.observed != resource.meta.generation or resource.status.failure is not None


def _with_deletion_told(volume: Volume) -> Volume:
    """`volume` with a condition when its deletion waits for somebody who has it published."""
    conditions = volume.status.conditions
    if volume.meta.deleting and volume.spec.attachments:
        nodes = ", ".join(each.node for each in volume.spec.attachments)
        message = f"it is published to {nodes}: it goes when it is unpublished"
        conditions = with_condition(conditions, Condition(HELD, ConditionStatus.TRUE, "Published", message))
    else:
        conditions = without_condition(conditions, HELD)
    return replace(volume, status=replace(volume.status, conditions=conditions))
