"""The event loop of the agent: uvloop, which takes less CPU time per call than asyncio's own (decision 0006)."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in that loop. Programs are started by agent.host.child, never by the loop, which would fork."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
