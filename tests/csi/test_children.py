"""Programs of the host started while calls are in flight, in the event loop that the agent runs in."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from pathlib import Path
from typing import Any

import grpc.aio

from agent.csi.client import CsiClient
from agent.csi.pb import csi_pb2 as csi
from agent.csi.pb import csi_pb2_grpc
from agent.host import event_loop, process

PROGRAMS = 160


class Identity(csi_pb2_grpc.IdentityServicer):
    async def Probe(self, request: Any, context: Any) -> csi.ProbeResponse:  # noqa: N802
        return csi.ProbeResponse()


def test_neither_disturbs_the_other(tmp_path: Path) -> None:
    """A program that did not start, or a call that was cut off, raises; a loop that stands still ends by timeout."""
    calls = event_loop.run(both(f"unix://{tmp_path}/s.sock"))
    assert calls


def test_a_caller_that_leaves_disturbs_nobody() -> None:
    """At whatever moment it leaves: nothing stays open, and the next program has its output."""
    assert event_loop.run(leaving()) == set()


def descriptors() -> set[tuple[int, str]]:
    """What is open, as number and file: others in this process may close theirs meanwhile."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found.add((int(entry.name), str(entry.readlink())))
    return found


async def leaving() -> set[tuple[int, str]]:
    """What is open afterwards that was not before."""
    await process.run(["true"], timeout_s=20)
    before = descriptors()

    async def leave_then_stay(turns: int) -> None:
        running = asyncio.create_task(process.run(["cat"], input=b"in", timeout_s=20))
        for _ in range(turns):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert (await process.run(["cat"], input=b"in", timeout_s=20)).stdout == "in"

    for turns in range(12):
        async with asyncio.TaskGroup() as group:
            for more in range(8):
                group.create_task(leave_then_stay(turns + more))
        gc.collect()
    return descriptors() - before


async def both(endpoint: str) -> int:
    server = grpc.aio.server()
    stubs: Any = csi_pb2_grpc  # generated without types
    stubs.add_IdentityServicer_to_server(Identity(), server)
    server.add_insecure_port(endpoint)
    await server.start()
    clients = [CsiClient(endpoint, timeout_s=20) for _ in range(4)]
    over, answered = asyncio.Event(), 0

    async def call(client: CsiClient) -> None:
        nonlocal answered
        while not over.is_set():
            await client.call("Identity/Probe", csi.ProbeRequest())
            answered += 1

    async def start_programs() -> None:
        for _ in range(PROGRAMS // 4):
            assert (await process.run(["sh", "-c", "echo out"], timeout_s=20)).stdout == "out\n"

    async with asyncio.TaskGroup() as group:
        for client in clients * 3:
            group.create_task(call(client))
        async with asyncio.TaskGroup() as programs:
            for _ in range(4):
                programs.create_task(start_programs())
        over.set()
    for client in clients:
        await client.close()
    await server.stop(None)
    return answered
