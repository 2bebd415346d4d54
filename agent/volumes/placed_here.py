"""The store of a cluster as one node sees it: lists and watches tell only of what is placed on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from agent.model import Disk, Snapshot, Volume
from agent.store.interface import Event, R, Store


class PlacedHere:
    """Implements `agent.store.interface.Store` over `store`. `get` still finds everything."""

    def __init__(self, store: Store, node: str) -> None:
        self._store = store
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

    async def get(self, kind: type[R], name: str) -> R | None:
        return await self._store.get(kind, name)

    async def list(self, kind: type[R]) -> list[R]:
        return [each for each in await self._store.list(kind) if self.has(each)]

    async def create(self, resource: R) -> R:
        return await self._store.create(resource)

    async def update(self, resource: R) -> R:
        return await self._store.update(resource)

    async def delete(self, kind: type[R], name: str, version: int | None = None) -> None:
        await self._store.delete(kind, name, version)

    def watch(self, kind: type[R], since: int | None = None) -> AsyncIterator[Event[R]]:
        return self._mine(self._store.watch(kind, since))

    async def _mine(self, events: AsyncIterator[Event[R]]) -> AsyncIterator[Event[R]]:
        async for event in events:
            if event.resource is None or self.has(event.resource):
                yield event

    async def close(self) -> None:
        await self._store.close()
