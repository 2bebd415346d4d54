"""A store that passes everything on to another: what stores with a view or a condition of their own begin with."""

from __future__ import annotations

from collections.abc import AsyncIterator

from agent.store.interface import Event, R, Store


class StoreThrough:
    """Implements `agent.store.interface.Store` by `store`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, kind: type[R], name: str) -> R | None:
        return await self._store.get(kind, name)

    async def list(self, kind: type[R]) -> list[R]:
        return await self._store.list(kind)

    async def create(self, resource: R) -> R:
        return await self._store.create(resource)

    async def update(self, resource: R) -> R:
        return await self._store.update(resource)

    async def delete(self, kind: type[R], name: str, version: int | None = None) -> None:
        await self._store.delete(kind, name, version)

    def watch(self, kind: type[R], since: int | None = None) -> AsyncIterator[Event[R]]:
        return self._store.watch(kind, since)

    async def close(self) -> None:
        await self._store.close()
