"""Work on a volume that may take longer than a caller waits: it goes on without the caller, once per volume.

Who asks for the same again is told how far it is, until it is done. What becomes of work whose caller has left is told
to the next one that asks for it: a check of an hour that found damage must not begin anew to say so.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

from agent.errors import Busy
from agent.tasks.background import noticed
from agent.tasks.guard import patience_s

log = logging.getLogger(__name__)
T = TypeVar("T")

REPEATED_WAITS_S = 2.0
TOLD_AFTER_S, TOLD_EVERY_S = 10.0, 30.0

Release = Callable[[], None]
Request = tuple[Hashable, ...]
"""The kind of work, then all that makes it another one."""


class Progress:
    """What is being done to a volume, since when, and how far it is."""

    def __init__(self) -> None:
        self._what, self._how_far, self._since = "", "", time.monotonic()

    def doing(self, what: str) -> None:
        """`what`: words that go on "for 12 s"."""
        self._what, self._how_far, self._since = what, "", time.monotonic()

    def reached(self, how_far: str) -> None:
        self._how_far = how_far

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._since

    def __str__(self) -> str:
        how_far = f" ({self._how_far})" if self._how_far else ""
        return f"{self._what or 'in preparation'} for {self.elapsed_s:.0f} s{how_far}"


@dataclass(eq=False)
class _Running:
    request: Request
    progress: Progress
    task: asyncio.Task[Any]
    waiting: int = 0
    """Callers that will hear what becomes of it."""


class LongWork:
    """Work by volume id. What `run` gets to hold keeps every other operation away while it lasts."""

    def __init__(self) -> None:
        self._running: dict[str, _Running] = {}

    async def run(
        self,
        volume: str,
        request: Request,
        take: Callable[[], Awaitable[Release]],
        work: Callable[[Progress], Awaitable[T]],
    ) -> T:
        """The result of `work`, begun now or by an earlier call with an equal `request`.

        `take` waits until it may begin, and returns what ends that. Raises what `work` raises; Busy, saying how far it
        is, when it goes on for longer than the caller waits, or when something else is going on.
        """
        running, waits_s = self._running.get(volume), REPEATED_WAITS_S
        if running is None or (running.task.done() and running.request != request):
            release = await take()
            running, waits_s = self._begin(volume, request, release, work), math.inf
        elif running.request != request:
            raise self._busy(volume, running)
        waits_s = min(waits_s, patience_s())
        running.waiting += 1
        try:
            await asyncio.wait([running.task], timeout=waits_s if waits_s < math.inf else None)
        finally:
            running.waiting -= 1
        if not running.task.done():
            raise self._busy(volume, running)
        if self._running.get(volume) is running:
            del self._running[volume]
        if running.task.cancelled():
            raise Busy(f"volume {volume} was taken away while it was {running.progress}")
        result: T = running.task.result()
        return result

    def progress(self, volume: str, *request: Hashable) -> str:
        """How far the work is whose request begins in this way; "" when there is none."""
        running = self._running.get(volume)
        if running is None or running.task.done() or running.request[: len(request)] != request:
            return ""
        return str(running.progress)

    def busy(self, volume: str) -> Busy | None:
        """The error for another operation while there is work."""
        running = self._running.get(volume)
        return self._busy(volume, running) if running is not None and not running.task.done() else None

    async def end(self, volume: str) -> None:
        """Have no work of this volume any more, and no result of it: it was taken from this machine."""
        running = self._running.pop(volume, None)
        if running is not None:
            running.task.cancel()
            await asyncio.wait([running.task])

    async def stop(self) -> None:
        """End all of it: the agent stops, and the next one begins it anew."""
        for volume in list(self._running):
            await self.end(volume)

    def _begin(
        self, volume: str, request: Request, release: Release, work: Callable[[Progress], Awaitable[T]]
    ) -> _Running:
        progress = Progress()
        task = asyncio.create_task(self._told(volume, progress, work), name=f"volume-work {volume}")
        running = self._running[volume] = _Running(request, progress, task)

        def ended(task: asyncio.Task[T]) -> None:
            release()
            error = None if task.cancelled() else task.exception()
            if error is None and self._running.get(volume) is running:
                del self._running[volume]  # what it did is there to be seen
            if error is not None and not running.waiting:
                log.warning("volume %s, %s: %s; the next call is told", volume, progress, error)

        task.add_done_callback(ended)
        return running

    async def _told(self, volume: str, progress: Progress, work: Callable[[Progress], Awaitable[T]]) -> T:
        telling = asyncio.create_task(_tell(volume, progress), name=f"volume-work-progress {volume}")
        noticed("volume work", telling)
        try:
            return await work(progress)
        finally:
            telling.cancel()

    @staticmethod
    def _busy(volume: str, running: _Running) -> Busy:
        return Busy(f"volume {volume} is {running.progress}; it goes on, repeat the call")


async def _tell(volume: str, progress: Progress) -> None:
    try:
        await asyncio.sleep(TOLD_AFTER_S)
        while True:
            log.info("volume %s is %s", volume, progress)
            await asyncio.sleep(TOLD_EVERY_S)
    finally:
        if progress.elapsed_s > TOLD_AFTER_S:
            log.info("volume %s is no longer %s", volume, progress)
