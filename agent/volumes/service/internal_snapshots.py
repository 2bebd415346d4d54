"""Internal snapshots, which a volume is cloned from: nobody but the agent sees them."""

from __future__ import annotations

from agent.model import Snapshot, Volume
from agent.store.interface import Store
from agent.tasks.operations import Operations
from agent.volumes.rules.settling import SnapshotSettler
from agent.volumes.service.lineage import is_made


async def hide_when_cloned(
    store: Store, operations: Operations, settler: SnapshotSettler, snapshot: Snapshot
) -> Snapshot:
    """An internal snapshot is deleted once its clone is made or given up. The clone's guard keeps a new one out."""
    async with operations.guard.hold(snapshot.spec.owner):
        owner = await store.get(Volume, snapshot.spec.owner)
        source = owner.spec.source if owner and not is_made(owner) else None
        if source is not None and source.snapshot == snapshot.meta.name:
            return snapshot
        return await settler.hide(snapshot)
