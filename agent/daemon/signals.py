"""Running until told to stop."""

from __future__ import annotations

import asyncio
import signal


def stop_event() -> asyncio.Event:
    """Set at SIGTERM and SIGINT."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stopping.set)
    return stopping


async def either(stopping: asyncio.Event, work: asyncio.Task[None]) -> None:
    """Returns when told to stop; raises what ends `work`."""
    stop = asyncio.create_task(stopping.wait(), name="stop")
    done, _ = await asyncio.wait({stop, work}, return_when=asyncio.FIRST_COMPLETED)
    for task in (stop, work):
        if task not in done:
            task.cancel()
    await asyncio.gather(stop, work, return_exceptions=True)
    if work in done:
        work.result()
