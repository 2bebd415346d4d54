"""The store of a cluster as one node sees it: lists and watches tell only of what is placed on it, or was."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from agent.model import Disk, DiskPhase, Snapshot, Volume
from agent.store.interface import Event, EventType, R, Store
from agent.store.through import StoreThrough


class PlacedHere(StoreThrough):
    """Of `store`; `get` still finds everything.

    Watches tell also how a resource leaves, and which disks nobody has any more: they may be here.
    """

    def __init__(self, store: Store, node: str) -> None:
        super().__init__(store)
        self._node = node
        self._told: set[tuple[type[Any], str]] = set()
        """What is placed here as far as was told: of each kind to one reader."""

    def has(self, resource: Any) -> bool:
        """Whether it is this node's to settle."""
        if isinstance(resource, Disk):
            return resource.status.node == self._node
        if isinstance(resource, Snapshot):
            return resource.spec.node == self._node
        if isinstance(resource, Volume):
            return any(replica.node == self._node for replica in resource.spec.placement)
        return True

    async def list(self, kind: type[R]) -> list[R]:
        found = [each for each in await super().list(kind) if self.has(each)]
        self._told.update((kind, each.meta.name) for each in found)
        return found

    def watch(self, kind: type[R], since: int | None = None) -> AsyncIterator[Event[R]]:
        return self._mine(super().watch(kind, since))

    async def _mine(self, events: AsyncIterator[Event[R]]) -> AsyncIterator[Event[R]]:
        async for event in events:
            if event.resource is None or self._concerns(event.resource, gone=event.type is EventType.DELETED):
                yield event

    def _concerns(self, resource: Any, *, gone: bool) -> bool:
        key = (type(resource), resource.meta.name)
        was_here = key in self._told
        if self.has(resource) and not gone:
            self._told.add(key)
            return True
        self._told.discard(key)
        return was_here or self.has(resource) or (isinstance(resource, Disk) and (gone or _is_lost(resource)))


def _is_lost(disk: Disk) -> bool:
    return disk.status.phase is DiskPhase.MISSING
