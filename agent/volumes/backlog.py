"""What is to be done in the background, by name, and again with growing pauses until it is done."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from agent.errors import QuarryError

log = logging.getLogger(__name__)

RETRY_MIN_S, RETRY_MAX_S = 0.2, 30.0


class Backlog:
    """Runs `handle` for each name, one after the other; one that raises a QuarryError is tried again later."""

    def __init__(self, what: str, handle: Callable[[str], Awaitable[None]]) -> None:
        self._what = what
        self._handle = handle
        self._due: set[str] = set()
        self._added = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"{self._what}-backlog")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def add(self, *names: str) -> None:
        """Have these handled soon."""
        self._due.update(names)
        if names:
            self._added.set()

    async def _run(self) -> None:
        delay = RETRY_MIN_S
        while True:
            await self._added.wait()
            due, self._due = sorted(self._due), set()
            self._added.clear()
            again = [name for name in due if not await self._done(name)]
            if not again:
                delay = RETRY_MIN_S
                continue
            await asyncio.sleep(delay)
            delay = min(2 * delay, RETRY_MAX_S)
            self.add(*again)

    async def _done(self, name: str) -> bool:
        try:
            await self._handle(name)
        except QuarryError as error:
            log.info("%s %s has to wait: %s", self._what, name, error)
            return False
        except Exception:  # the outermost loop: an error of ours must not stop the rest
            log.exception("%s %s could not be looked after", self._what, name)
            return False
        return True
