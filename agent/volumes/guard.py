"""One operation per volume at a time: the others wait briefly, then are told to ask again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agent.errors import Busy


class VolumeGuard:
    """Locks by volume id (or path) that exist only while somebody holds or awaits them."""

    def __init__(self, wait_s: float = 2.0) -> None:
        self._wait_s = wait_s
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def hold(self, volume: str, wait_s: float | None = None) -> AsyncIterator[None]:
        """Hold `volume` for the block. Raises Busy when it is still held by another after `wait_s` seconds."""
        lock, users = self._locks.get(volume, (asyncio.Lock(), 0))
        self._locks[volume] = (lock, users + 1)
        try:
            if lock.locked():
                await self._acquire(lock, volume, self._wait_s if wait_s is None else wait_s)
            else:
                await lock.acquire()
            try:
                yield
            finally:
                lock.release()
        finally:
            lock, users = self._locks[volume]
            if users == 1:
                del self._locks[volume]
            else:
                self._locks[volume] = (lock, users - 1)

    @staticmethod
    async def _acquire(lock: asyncio.Lock, volume: str, wait_s: float) -> None:
        try:
            await asyncio.wait_for(lock.acquire(), wait_s)
        except TimeoutError:
            raise Busy(f"another operation on volume {volume} is in progress; repeat the call") from None
