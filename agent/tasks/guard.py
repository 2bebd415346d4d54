"""One operation per volume at a time: the others wait briefly, then are told to ask again."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

from agent.errors import Busy

caller_waits_until: ContextVar[float] = ContextVar("caller_waits_until", default=math.inf)
"""When the caller of the current task stops waiting for its answer, on time.monotonic()."""

_ANSWER_SHARE, _ANSWER_MAX_S = 0.2, 0.5
"""What is left of a caller's patience for carrying the answer back: a share, but not more than so many seconds."""


def patience_s() -> float:
    """How long the current caller can be let wait and still get an answer, in seconds: 0 or more, `math.inf`."""
    left_s = caller_waits_until.get() - time.monotonic()
    return max(0.0, left_s - min(_ANSWER_MAX_S, _ANSWER_SHARE * left_s))


class VolumeGuard:
    """Locks by volume id (or path) that exist only while somebody holds or awaits them."""

    def __init__(self, wait_s: float = 2.0) -> None:
        self._wait_s = wait_s
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def hold(self, volume: str, wait_s: float | None = None) -> AsyncIterator[None]:
        """Hold `volume` for the block; see `acquire`."""
        await self.acquire(volume, wait_s)
        try:
            yield
        finally:
            self.release(volume)

    async def acquire(self, volume: str, wait_s: float | None = None) -> None:
        """Hold `volume` until `release`, which another task may call.

        Raises Busy when it is still held by another after `wait_s` seconds, or shortly before the caller leaves.
        """
        lock, users = self._locks.get(volume, (asyncio.Lock(), 0))
        self._locks[volume] = (lock, users + 1)
        try:
            if users:  # not lock.locked(): between a release and the next one's turn it is not
                await self._acquire(lock, volume, self._wait_s if wait_s is None else wait_s)
            else:
                await lock.acquire()
        except BaseException:
            self._forget(volume)
            raise

    def is_held(self, volume: str) -> bool:
        """Whether somebody holds or awaits it."""
        return volume in self._locks

    def release(self, volume: str) -> None:
        """Let the next one have it."""
        self._locks[volume][0].release()
        self._forget(volume)

    def _forget(self, volume: str) -> None:
        lock, users = self._locks[volume]
        if users == 1:
            del self._locks[volume]
        else:
            self._locks[volume] = (lock, users - 1)

    @staticmethod
    async def _acquire(lock: asyncio.Lock, volume: str, wait_s: float) -> None:
        try:
            await asyncio.wait_for(lock.acquire(), min(wait_s, patience_s()))
        except TimeoutError:
            raise Busy(f"another operation on volume {volume} is in progress; repeat the call") from None
