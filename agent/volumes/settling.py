"""Between deciding and doing: what records a wish, and what settles it on the target, here or on another node.

On one machine the reconcilers settle themselves; in a cluster agent.volumes.remote waits for the node that does.
"""

from __future__ import annotations

from typing import Protocol

from agent.model import Snapshot, Volume
from agent.volumes.snapshot_reconcile import Quiesce


class Settler(Protocol):
    """Settles volumes as they are stored: agent.volumes.reconcile.Reconciler, or waits for one."""

    async def settle(self, volume: Volume) -> Volume | None:
        """Returns when the target agrees with `volume`, as recorded then; None when it was deleted and is gone.

        Raises DiskAway when nothing can be done now but to cut hosts that may no longer reach it, and that is done.
        """
        ...

    async def ready(self) -> object:
        """Returns when it is known which disks there are. Raises Unavailable."""
        ...

    def bdev_of(self, volume: Volume) -> str:
        """Name of its bdev on this machine's target; empty: it is not here."""
        ...

    def holds_unrecorded(self, volume: str) -> bool:
        """Whether a pool is known to have data of that name."""
        ...


class SnapshotSettler(Protocol):
    """Settles snapshots: agent.volumes.snapshot_reconcile.SnapshotReconciler, or waits for one."""

    async def take(self, snapshot: Snapshot, volume: Volume, quiesce: Quiesce) -> Snapshot: ...

    async def hide(self, snapshot: Snapshot) -> Snapshot: ...

    async def settle(self, snapshot: Snapshot) -> Snapshot | None: ...
