"""A store that one may write to only as long as nobody else does: the fence of the leader."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from agent.errors import Unavailable
from agent.store.interface import Event, R, Store

T = TypeVar("T")


class FencedStore:
    """Implements `agent.store.interface.Store`; writes end, with Unavailable, at `until()` on time.monotonic()."""

    def __init__(self, store: Store, until: Callable[[], float]) -> None:
        self._store = store
        self._until = until

    def require(self) -> None:
        """Raises Unavailable when nothing may be written now."""
        if time.monotonic() >= self._until():
            raise Unavailable("this controller does not lead: ask again, the one that does answers")

    async def get(self, kind: type[R], name: str) -> R | None:
        return await self._store.get(kind, name)

    async def list(self, kind: type[R]) -> list[R]:
        return await self._store.list(kind)

    async def create(self, resource: R) -> R:
        return await self._bounded(lambda: self._store.create(resource))

    async def update(self, resource: R) -> R:
        return await self._bounded(lambda: self._store.update(resource))

    async def delete(self, kind: type[R], name: str, version: int | None = None) -> None:
        await self._bounded(lambda: self._store.delete(kind, name, version))

    def watch(self, kind: type[R], since: int | None = None) -> AsyncIterator[Event[R]]:
        return self._store.watch(kind, since)

    async def close(self) -> None:
        await self._store.close()

    async def _bounded(self, write: Callable[[], Awaitable[T]]) -> T:
        self.require()
        try:
            async with asyncio.timeout(self._until() - time.monotonic()):
                return await write()
        except TimeoutError as error:
            raise Unavailable("this controller leads no longer; the write may have happened: repeat it") from error
