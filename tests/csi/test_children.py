"""Programs of the host started while calls are in flight, in the event loop that the agent runs in."""

from __future__ import annotations

import asyncio
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
