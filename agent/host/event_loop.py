"""The event loop of the agent: uvloop, which takes less CPU time per call than asyncio's own (decision 0006)."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")

_ALLOCATIONS = 5000
"""After how many more objects than were freed the collector looks at the young ones, instead of after 700."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in that loop. Programs are started by agent.host.child, never by the loop, which would fork."""
    # What was imported stays: the collector need not go through it again and again (a tenth of the CPU time per call).
    gc.freeze()
    gc.set_threshold(_ALLOCATIONS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
