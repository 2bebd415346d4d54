"""Between deciding and doing: what records a wish, and what settles it on the target, here or on another node.

On one machine the reconcilers settle themselves; in a cluster agent.volumes.controller.remote waits for the node that
does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from agent.model import Snapshot, Volume
from agent.volumes.rules.snapshot_plan import SnapshotSeen

Quiesce = Callable[[Volume], AbstractAsyncContextManager[None]]
"""For the block nothing is written to the volume by hosts that its filesystem does not know of."""


class Settler(Protocol):
    """Settles volumes as they are stored: agent.volumes.target.reconcile.Reconciler, or waits for one."""

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
    """Settles snapshots: agent.volumes.target.snapshot_reconcile.SnapshotReconciler, or waits for one."""

    async def take(self, snapshot: Snapshot, volume: Volume, quiesce: Quiesce) -> Snapshot: ...

    async def hide(self, snapshot: Snapshot) -> Snapshot: ...

    async def settle(self, snapshot: Snapshot) -> Snapshot | None: ...


class Pauses(Protocol):
    """Holding writes to several volumes back: agent.volumes.attach.stillness.Stillness."""

    def of_all(self, volumes: Sequence[Volume]) -> AbstractAsyncContextManager[None]:
        """For the block nothing is written to them by hosts that their filesystems do not know of."""
        ...

    async def resume(self, volumes: Sequence[Volume]) -> None:
        """Let their hosts go on, which may have been held back when the agent was killed."""
        ...


class SnapshotCutter(Protocol):
    """Snapshots of several volumes at one moment: agent.volumes.target.snapshot_reconcile.SnapshotReconciler."""

    async def cut(self, snapshot: Snapshot, volume: Volume) -> SnapshotSeen: ...

    async def record(self, snapshot: Snapshot, seen: SnapshotSeen, cut_at: float) -> Snapshot: ...

    async def hide(self, snapshot: Snapshot) -> Snapshot: ...

    async def settle(self, snapshot: Snapshot) -> Snapshot | None: ...
