"""The agent's threads as the kernel schedules them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from agent.csi.client import CsiClient
from tests.crash.machine import Machine


def test_only_threads_that_hand_over_wait_for_the_others() -> None:
    """Those of gRPC do not interrupt; the event loop, and the programs it starts, are scheduled as any other."""
    machine = Machine("embedded")
    try:
        machine.target.start()
        machine.start_agent()
        asyncio.run(probed(machine.endpoint))
        assert machine.agent is not None
        main = machine.agent.pid
        policies: dict[str, set[int]] = {}
        for task in Path(f"/proc/{main}/task").iterdir():
            name = "main" if int(task.name) == main else (task / "comm").read_text().strip()
            policies.setdefault(name, set()).add(os.sched_getscheduler(int(task.name)))
    finally:
        machine.close()
    assert policies["main"] == {os.SCHED_OTHER}
    assert policies["event_engine"] == {os.SCHED_BATCH}


async def probed(endpoint: str) -> None:
    async with CsiClient(endpoint) as client:
        await client.wait_ready(30)
        await client.probe()
