"""Tasks that go on as long as their owner does, whatever happens to them: none ends without being noticed."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from agent.tasks.failures import FAILURES

PAUSE_S, PAUSE_MAX_S = 0.5, 30.0
"""Between a failure and the next try: doubled with each, until it has run well for twice as long as the last one."""

Run = Callable[[], Awaitable[None]]


class Background:
    """Owns tasks until `stop`. What ends one is logged and counted (`FAILURES`), and it is begun again after a pause.

    Names of tasks are words of the code, never of a volume or a disk: they are labels of a metric.
    """

    def __init__(self, *, pause_s: float = PAUSE_S, pause_max_s: float = PAUSE_MAX_S) -> None:
        self._pause_s = pause_s
        self._pause_max_s = pause_max_s
        self._tasks: set[asyncio.Task[None]] = set()

    def keep(self, what: str, run: Run) -> None:
        """Have `run` going for ever: begun again also when it returns."""
        self._start(what, self._again_and_again(what, run, once=False))

    def once(self, what: str, run: Run) -> None:
        """Have `run` done: begun again until it returns."""
        self._start(what, self._again_and_again(what, run, once=True))

    def every(self, what: str, interval_s: float, look: Run) -> None:
        """Have `look` called at intervals, the first time after one."""

        async def looks() -> None:
            while True:
                await asyncio.sleep(interval_s)
                try:
                    await look()
                except Exception as error:  # noqa: BLE001 - the outermost loop: it is counted, and looks go on
                    FAILURES.failed(what, error, f"the next look is in {interval_s:g} s")
                else:
                    FAILURES.succeeded(what)

        self._start(what, looks())

    async def stop(self) -> None:
        """Cancel all of them, and return when they have ended."""
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, what: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _again_and_again(self, what: str, run: Run, *, once: bool) -> None:
        pause_s = self._pause_s
        while True:
            began, well_after_s = time.monotonic(), 2 * pause_s
            well = asyncio.get_running_loop().call_later(well_after_s, FAILURES.succeeded, what)
            try:
                await run()
                if once:
                    FAILURES.succeeded(what)
                    return
                raise EndedEarly(f"{what} has come to its end")
            except Exception as error:  # noqa: BLE001 - the outermost loop: it is counted, and begun again
                if time.monotonic() - began > well_after_s:
                    pause_s = self._pause_s
                FAILURES.failed(what, error, f"it is begun again in {pause_s:g} s")
            finally:
                well.cancel()
            # Not all agents at once, which were all cut off by the same outage.
            await asyncio.sleep(pause_s * random.uniform(0.7, 1.0))  # noqa: S311 - spreads load, keeps no secret
            pause_s = min(2 * pause_s, self._pause_max_s)


class EndedEarly(Exception):
    """A task that is to go on for ever has returned: a defect."""


def noticed(what: str, task: asyncio.Task[Any]) -> None:
    """Log and count it when `task`, which nobody waits for and which cannot be begun again, ends in an error."""

    def ended(task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            FAILURES.failed(what, error, "it is not begun again")

    task.add_done_callback(ended)
