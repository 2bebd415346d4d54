"""One operation per volume: the second waits, then is told to ask again; others are not held up."""

from __future__ import annotations

import asyncio

import pytest

from agent.errors import Busy
from agent.volumes.guard import VolumeGuard


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
