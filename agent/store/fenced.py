"""A store that one may write to only as long as nobody else does: the fence of the leader."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from agent.errors import Unavailable
from agent.store.interface import R, Store
from agent.store.through import StoreThrough


class FencedStore(StoreThrough):
    """Writes to `store` end, with Unavailable, at `until()` on time.monotonic()."""

    def __init__(self, store: Store, until: Callable[[], float]) -> None:
        super().__init__(store)
        self._until = until

    def require(self) -> None:
        """Raises Unavailable when nothing may be written now."""
        if time.monotonic() >= self._until():
            raise Unavailable("this controller does not lead: ask again, the one that does answers")

    async def create(self, resource: R) -> R:
        async with self._fence():
            return await super().create(resource)

    async def update(self, resource: R) -> R:
        async with self._fence():
            return await super().update(resource)

    async def delete(self, kind: type[R], name: str, version: int | None = None) -> None:
        async with self._fence():
            await super().delete(kind, name, version)

    @asynccontextmanager
    async def _fence(self) -> AsyncIterator[None]:
        self.require()
        try:
            async with asyncio.timeout(self._until() - time.monotonic()):
                yield
        except TimeoutError as error:
            raise Unavailable("this controller leads no longer; the write may have happened: repeat it") from error
