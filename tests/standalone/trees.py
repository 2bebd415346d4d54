"""What tests of snapshots share: a client of an agent on a machine, and volumes written and read as a host does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from agent.csi.client import CallFailed
from agent.nvmf import initiator
from tests.crash.machine import NODE, Machine, Patient, holdings

MIB = 1 << 20
SIZE = 16 * MIB
SSD = {"tier": "ssd"}


@asynccontextmanager
async def client_of(machine: Machine) -> AsyncIterator[Patient]:
    """A patient client of the agent, which is ready."""
    patient = Patient(machine.endpoint)
    try:
        await patient.wait_ready()
        yield patient
    finally:
        await patient.close()


@asynccontextmanager
async def opened(csi: Patient, volume: str) -> AsyncIterator[initiator.Controller]:
    """A volume as a host sees it."""
    context = await csi.call("publish", volume, NODE)
    host = await initiator.connect(context["address"], int(context["port"]), context["nqn"], context["hostNqn"])
    try:
        yield host
    finally:
        await host.close()
        await csi.call("unpublish", volume, NODE)


async def write(csi: Patient, volume: str, text: str, *offsets: int) -> None:
    """4 KiB of `text` at each offset."""
    async with opened(csi, volume) as host:
        for offset in offsets:
            await host.write(1, offset, text.encode().ljust(4096, b"."))
        await host.flush(1)


async def read(csi: Patient, volume: str, *offsets: int) -> list[str]:
    """What `write` wrote at each offset; empty where nothing was written."""
    async with opened(csi, volume) as host:
        return [(await host.read(1, offset, 4096)).rstrip(b".\0").decode() for offset in offsets]


async def code_of(call: Awaitable[Any]) -> grpc.StatusCode:
    """With which code the call is refused."""
    try:
        await call
    except CallFailed as error:
        return error.code
    raise AssertionError("the call was not refused")


async def wait_lvols(machine: Machine, expected: Iterable[str], timeout_s: float = 20.0) -> None:
    """Return when the target has these lvols of ours and no other: deletions may end in the background."""
    wanted, deadline = sorted(expected), time.monotonic() + timeout_s
    while (found := (await holdings(machine.target.socket_path)).lvols) != wanted:
        assert time.monotonic() < deadline, f"lvols {found} instead of {wanted}:\n{machine.agent_log()[-3000:]}"
        await asyncio.sleep(0.05)
