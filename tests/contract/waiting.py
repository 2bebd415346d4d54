"""Waiting for a condition with a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from agent.errors import RpcError
from agent.spdk import app
from agent.spdk.client import Client

T = TypeVar("T")


async def until(read: Callable[[], Awaitable[T]], wanted: Callable[[T], bool], timeout_s: float = 20.0) -> T:
    """What `read` gives as soon as it is `wanted`."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = await read()
        if wanted(value):
            return value
        assert time.monotonic() < deadline, f"still {value!r} after {timeout_s} s"
        await asyncio.sleep(0.02)


async def reconnected(rpc: Client, pid: int) -> None:
    """Return when the client talks to the process `pid` and that has started."""

    async def peer() -> int | None:
        return rpc.peer_pid

    await until(peer, lambda found: found == pid)
    await app.wait_init(rpc)


async def refused(call: Awaitable[object]) -> int:
    """The error code that the call is answered with."""
    with pytest.raises(RpcError) as caught:
        await call
    return caught.value.code
