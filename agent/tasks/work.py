"""What is to be done in the background, by name, and again after growing pauses until it is done."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from agent.errors import QuarryError
from agent.tasks.failures import FAILURES

log = logging.getLogger(__name__)

RETRY_MIN_S = 0.2


class Work:
    """Runs `handle` for names that are stirred, each in a task of its own, `parallel` of them at a time (0: all).

    A QuarryError says that it is not done; `handle` is to do nothing when nothing is to be done.
    """

    def __init__(
        self, what: str, handle: Callable[[str], Awaitable[None]], *, parallel: int = 64, retry_max_s: float = 10.0
    ) -> None:
        self._what = what
        self._handle = handle
        self._slots = asyncio.Semaphore(parallel) if parallel else None
        self._retry_max_s = retry_max_s
        self._stirred: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def stop(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def stir(self, *names: str) -> None:
        """Have these looked at, now."""
        for name in names:
            if (event := self._stirred.get(name)) is not None:
                event.set()
                continue
            self._stirred[name] = asyncio.Event()
            task = asyncio.create_task(self._until_done(name), name=f"{self._what}-{name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _until_done(self, name: str) -> None:
        stirred, delay = self._stirred[name], RETRY_MIN_S
        try:
            while True:
                stirred.clear()
                if await self._is_done(name, again=delay > RETRY_MIN_S):
                    if not stirred.is_set():
                        return
                    delay = RETRY_MIN_S
                    continue
                try:
                    async with asyncio.timeout(delay):
                        await stirred.wait()
                    delay = RETRY_MIN_S
                except TimeoutError:
                    delay = min(2 * delay, self._retry_max_s)
        finally:
            del self._stirred[name]

    async def _is_done(self, name: str, *, again: bool) -> bool:
        try:
            if self._slots is None:
                await self._handle(name)
            else:
                async with self._slots:
                    await self._handle(name)
        except QuarryError as error:
            log.log(logging.DEBUG if again else logging.INFO, "%s %s has to wait: %s", self._what, name, error)
            return False
        except Exception:  # the outermost loop: a defect must not end it for all time
            FAILURES.counts[self._what] += 1
            log.exception("%s %s could not be looked after", self._what, name)
            return False
        return True
