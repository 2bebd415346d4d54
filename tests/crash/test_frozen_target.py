"""A target that stops answering mid-call: callers get a deadline, Probe tells, and all is well when it goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable

import grpc
import pytest

from agent.csi.client import CallFailed

from .machine import NODE, Machine, Patient, holdings

MIB = 1 << 20
IMPATIENT = "rpc: {call_timeout_s: 0.5, heartbeat_interval_s: 0.3}"


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < deadline, "the condition was never met"
        await asyncio.sleep(0.02)


async def test_a_frozen_target_is_reported_and_survived(machine: Machine) -> None:
    machine.start_agent(IMPATIENT)
    csi = Patient(machine.endpoint)
    try:
        await csi.wait_ready()
        kept = await csi.call("create_volume", "kept", 16 * MIB, {"tier": "ssd"})
        os.kill(machine.target.pid, signal.SIGSTOP)
        try:
            with pytest.raises(CallFailed) as failure:
                await csi.client.create_volume("frozen", 16 * MIB, {"tier": "ssd"})
            assert failure.value.code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)

            async def not_ready() -> bool:
                return not await csi.client.probe()

            await until(not_ready)
        finally:
            os.kill(machine.target.pid, signal.SIGCONT)
        await csi.wait_ready()
        made = await csi.call("create_volume", "frozen", 16 * MIB, {"tier": "ssd"})
        await csi.call("publish", made, NODE)
        found = await holdings(machine.target.socket_path)
        assert found.lvols == sorted([kept, made])
        assert {volume: len(hosts) for volume, hosts in found.exports.items()} == {kept: 0, made: 1}
    finally:
        await csi.close()
