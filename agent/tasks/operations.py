"""Operations that run to their end once begun, even if their caller goes away: nothing is left half known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from agent.tasks.background import noticed
from agent.tasks.guard import VolumeGuard

T = TypeVar("T")


class Operations:
    """Runs operations under a guard, by the name of what they change."""

    def __init__(self, guard: VolumeGuard) -> None:
        self.guard = guard
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, name: str, operation: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run `operation` holding `name`, to its end even when the caller is cancelled. Busy: it is held for too long.

        A caller that leaves before it is its turn has asked for nothing: it may have asked for something else since.
        """

        async def guarded() -> T:
            try:
                return await operation()
            finally:
                self.guard.release(name)

        await self.guard.acquire(name)
        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            noticed("operation", task)  # the caller went away: nobody else hears what becomes of it
            raise

    async def drain(self, timeout_s: float) -> None:
        """Wait for the operations in flight, at most `timeout_s` seconds; called at shutdown.

        One that takes longer (a deletion that zeroes much) ends with the connection and is taken up at the next start.
        """
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
