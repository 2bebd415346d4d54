"""Settling on other nodes: the wish is in the store, the node of the data settles it, and its status says so.

Nothing is sent to a node. Whoever waits here is told by a watch; a node that is away is waited for until the deadline.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, TypeVar

from agent.errors import Busy, QuarryError, Unavailable
from agent.model import Snapshot, SnapshotPhase, Volume
from agent.pools.ledger import Ledger
from agent.store.following import Changes
from agent.store.interface import Store
from agent.tasks.guard import caller_waits_until
from agent.volumes.rules import failures
from agent.volumes.rules.deletion import is_data_gone
from agent.volumes.rules.settling import Quiesce
from agent.volumes.service.lineage import Lineage, is_made

WAIT_MAX_S = 30.0
"""Longest wait for a node, also for callers without a deadline."""

_ANSWER_S = 0.5
"""Left of a caller's deadline for the answer."""

T = TypeVar("T", Volume, Snapshot)


class Nodes(Protocol):
    """What is known of all nodes: agent.volumes.controller.fleet.Fleet."""

    def excuse(self, node: str) -> str:
        """Why it may be silent; empty: no reason is known."""
        ...

    def has_unrecorded(self, volume: str) -> bool:
        """Whether a disk has data of that name that have no record."""
        ...


class RemoteSettler:
    """Implements `agent.volumes.rules.settling.Settler`.

    `require_leading` raises Unavailable unless this process may write.

    `nodes` tells of them: why one may be silent, and which data on their disks have no record.
    """

    def __init__(
        self,
        changes: Changes[Volume],
        ledger: Ledger,
        lineage: Lineage,
        require_leading: Callable[[], None],
        nodes: Nodes,
    ) -> None:
        self._changes = changes
        self._ledger = ledger
        self._lineage = lineage
        self._require_leading = require_leading
        self._nodes = nodes

    async def settle(self, volume: Volume) -> Volume | None:
        if not volume.spec.placement:
            return volume
        node = volume.spec.placement[0].node
        now = await outcome(
            self._changes, volume, lambda: _silent(f"volume {volume.meta.name}", node, self._nodes.excuse(node))
        )
        name, source = volume.meta.name, volume.spec.source
        if now is None:
            self._ledger.release(name)
        if source is not None and (now is None or is_made(now)):
            self._lineage.served(name, source.snapshot)
        return now

    async def ready(self) -> None:
        self._require_leading()

    def bdev_of(self, volume: Volume) -> str:
        return ""

    def holds_unrecorded(self, volume: str) -> bool:
        return self._nodes.has_unrecorded(volume)


class RemoteSnapshots:
    """Implements `agent.volumes.rules.settling.SnapshotSettler`."""

    def __init__(
        self,
        store: Store,
        changes: Changes[Snapshot],
        ledger: Ledger,
        lineage: Lineage,
        excuse: Callable[[str], str],
    ) -> None:
        self._store = store
        self._changes = changes
        self._ledger = ledger
        self._lineage = lineage
        self._excuse = excuse

    async def take(self, snapshot: Snapshot, volume: Volume, quiesce: Quiesce) -> Snapshot:
        """Wait until its node has cut it. What is mounted elsewhere than on that node is not frozen."""
        taken = await self._outcome(snapshot)
        if taken is None or taken.status.phase is SnapshotPhase.PENDING:
            raise Unavailable(f"snapshot {snapshot.meta.name} is not taken yet; repeat the call")
        return taken

    async def hide(self, snapshot: Snapshot) -> Snapshot:
        """Raises Busy while a volume is about to be recorded that is made of it."""
        if snapshot.meta.deleting:
            return snapshot
        for volume in self._lineage.waiting_for(snapshot.meta.name):
            if await self._store.get(Volume, volume) is None:
                raise Busy(f"snapshot {snapshot.meta.name} is being restored; repeat the call")
        hidden = await self._store.update(replace(snapshot, meta=replace(snapshot.meta, deleting=True)))
        self._lineage.add(hidden)
        return hidden

    async def settle(self, snapshot: Snapshot) -> Snapshot | None:
        now = await self._outcome(snapshot)
        if now is None:
            self._ledger.release(snapshot.meta.name)
            self._lineage.forget(snapshot)
        return now

    async def _outcome(self, snapshot: Snapshot) -> Snapshot | None:
        node = snapshot.spec.node
        return await outcome(
            self._changes, snapshot, lambda: _silent(f"snapshot {snapshot.meta.name}", node, self._excuse(node))
        )


async def outcome(changes: Changes[T], wished: T, silent: Callable[[], QuarryError]) -> T | None:
    """What became of `wished` when its node has settled it; None when it is deleted and gone.

    Raises the error the node ended in, unless it is one the node will try again: that is waited for, until the
    deadline of the caller. Without any answer until then it is `silent`.
    """
    last: T | None = None

    def is_over(now: T | None) -> bool:
        nonlocal last
        last = now
        if now is None:
            return True
        failure = now.status.failure
        if now.status.observed < wished.meta.generation:
            return False
        if failure is not None:
            return not failures.is_waited_for(failures.raised(failure))
        if not now.meta.deleting or _is_held(now):
            return True
        # A deleted snapshot may have to stay for others; what is published stays until it is not.
        return bool(now.status.message) if isinstance(now, Snapshot) else bool(now.spec.attachments)

    in_time = await changes.until(wished.meta.name, is_over, _deadline())
    failure = last.status.failure if last is not None else None
    if last is not None and failure is not None and last.status.observed >= wished.meta.generation:
        raise failures.raised(failure)
    if last is not None and _is_held(last):
        raise Unavailable(
            f"{type(last).__name__.lower()} {last.meta.name} is deleted and its data are gone, but others hold its "
            f"record by finalizers: {', '.join(last.meta.held_by)}. It goes when they take them off"
        )
    if not in_time:
        raise silent()
    return last


def _is_held(resource: Volume | Snapshot) -> bool:
    """Whether nothing but finalizers of others keeps it."""
    return bool(resource.meta.held_by) and is_data_gone(resource)


def _deadline() -> float:
    now = time.monotonic()
    return max(now + 0.1, min(now + WAIT_MAX_S, caller_waits_until.get() - _ANSWER_S))


def _silent(what: str, node: str, excuse: str) -> Unavailable:
    return Unavailable(f"node {node} has not settled {what} yet{': ' + excuse if excuse else ''}; repeat the call")
