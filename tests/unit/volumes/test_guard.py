"""One operation per volume: the second waits, then is told to ask again; others are not held up."""

from __future__ import annotations

import asyncio
import time

import pytest

from agent.errors import Busy
from agent.tasks.guard import VolumeGuard, caller_waits_until


async def test_a_second_operation_waits_for_the_first() -> None:
    guard = VolumeGuard(wait_s=5)
    order: list[str] = []
    inside = asyncio.Event()

    async def first() -> None:
        async with guard.hold("v"):
            inside.set()
            await asyncio.sleep(0)
            order.append("first")

    task = asyncio.create_task(first())
    await inside.wait()
    async with guard.hold("v"):
        order.append("second")
    await task
    assert order == ["first", "second"]


async def test_it_is_busy_after_the_wait_and_free_afterwards() -> None:
    guard = VolumeGuard(wait_s=0.01)
    async with guard.hold("v"):
        async with guard.hold("other"):
            pass
        with pytest.raises(Busy):
            async with guard.hold("v"):
                pass
    async with guard.hold("v"):
        pass
    assert guard._locks == {}, "locks of idle volumes are not kept"


async def test_a_cancelled_waiter_leaves_the_lock_usable() -> None:
    guard = VolumeGuard(wait_s=5)

    async def hold() -> None:
        async with guard.hold("v"):
            pass

    async with guard.hold("v"):
        waiter = asyncio.create_task(hold())
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
    await asyncio.wait_for(hold(), 1)


async def test_a_caller_in_a_hurry_is_told_before_it_leaves() -> None:
    guard = VolumeGuard(wait_s=60)
    async with guard.hold("v"):
        until = time.monotonic() + 0.2
        caller_waits_until.set(until)
        with pytest.raises(Busy):
            await guard.acquire("v")
        assert time.monotonic() < until
        caller_waits_until.set(time.monotonic() - 1)
        with pytest.raises(Busy):
            await guard.acquire("v")
        await guard.acquire("other")
        guard.release("other")
    await guard.acquire("v")
    guard.release("v")
    assert guard._locks == {}


async def test_one_that_comes_between_a_release_and_the_next_turn_does_not_wait_for_ever() -> None:
    guard = VolumeGuard(wait_s=0.05)
    await guard.acquire("v")
    second = asyncio.create_task(guard.acquire("v"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    guard.release("v")
    with pytest.raises(Busy):
        await guard.acquire("v")
    await second
    guard.release("v")
    assert guard._locks == {}
