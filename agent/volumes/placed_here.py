"""The store of a cluster as one node sees it: lists and watches tell only of what is placed on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from agent.model import Disk, Snapshot, Volume
from agent.store.interface import Event, R, Store
from agent.store.through import StoreThrough


class PlacedHere(StoreThrough):
    """Of `store`; `get` still finds everything."""

    def __init__(self, store: Store, node: str) -> None:
        super().__init__(store)
        self._node = node

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
        return [each for each in await super().list(kind) if self.has(each)]

    def watch(self, kind: type[R], since: int | None = None) -> AsyncIterator[Event[R]]:
        return self._mine(super().watch(kind, since))

    async def _mine(self, events: AsyncIterator[Event[R]]) -> AsyncIterator[Event[R]]:
        async for event in events:
            if event.resource is None or self.has(event.resource):
                yield event
