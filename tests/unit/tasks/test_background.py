"""Work in the background: whatever ends it, it is begun again, counted and told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import pytest

from agent.errors import Unavailable
from agent.tasks.background import Background, noticed
from agent.tasks.failures import FAILURES


@pytest.fixture
async def background() -> AsyncIterator[Background]:
    made = Background(pause_s=0.001, pause_max_s=0.01)
    yield made
    await made.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - conditions of all kinds
            await asyncio.sleep(0.002)


class Work:
    """Ends in each of `ends` in turn (None: it returns), then goes on for ever."""

    def __init__(self, *ends: Exception | None) -> None:
        self.begun = 0
        self._ends = list(ends)

    async def __call__(self) -> None:
        self.begun += 1
        if not self._ends:
            await asyncio.Event().wait()
        end = self._ends.pop(0)
        if end is not None:
            raise end


async def test_what_is_kept_goes_on_whatever_ends_it(background: Background, caplog: pytest.LogCaptureFixture) -> None:
    work, before = Work(Unavailable("the store is away"), KeyError("spec"), None), FAILURES.counts["test-kept"]
    background.keep("test-kept", work)
    await until(lambda: work.begun == 4)
    assert FAILURES.counts["test-kept"] - before == 3
    assert [(each.levelno, each.exc_info is not None) for each in caplog.records] == [
        (logging.WARNING, False),
        (logging.ERROR, True),
        (logging.ERROR, True),
    ]
    assert "the store is away" in caplog.text
    assert "begun again in" in caplog.text


async def test_what_fails_again_and_again_is_told_until_it_works(background: Background) -> None:
    work = Work(*(Unavailable("away") for _ in range(3)))
    background.every("test-looks", 0.001, work)
    await until(lambda: FAILURES.failing().get("test-looks") == "away")
    await until(lambda: work.begun == 4)
    assert "test-looks" in FAILURES.failing()  # it has not come to an end yet
    once = Background(pause_s=0.001)
    once.once("test-looks", Work(None))
    await until(lambda: "test-looks" not in FAILURES.failing())
    await once.stop()


async def test_one_failure_is_what_another_try_is_for(background: Background) -> None:
    work = Work(Unavailable("away"))
    background.keep("test-once-failed", work)
    await until(lambda: work.begun == 2)
    assert "test-once-failed" not in FAILURES.failing()


async def test_what_is_to_be_done_once_is_tried_until_it_is_done(background: Background) -> None:
    work = Work(OSError(28, "No space left on device"), None)
    background.once("test-once", work)
    await until(lambda: work.begun == 2)
    await asyncio.sleep(0.02)
    assert work.begun == 2


async def test_stop_ends_all_and_waits_for_them() -> None:
    ended, background = asyncio.Event(), Background()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.set()

    background.keep("test-stopped", work)
    await asyncio.sleep(0)
    await background.stop()
    assert ended.is_set()


async def test_a_task_that_cannot_be_begun_again_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    before = FAILURES.counts["test-noticed"]
    task = asyncio.create_task(Work(ValueError("odd"))())
    noticed("test-noticed", task)
    await asyncio.wait({task})
    await asyncio.sleep(0)
    assert FAILURES.counts["test-noticed"] - before == 1
    assert "odd" in caplog.text
