"""Snapshots over CSI on a machine with a target: what they hold, what stands on what, in which order all of it goes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from agent.csi.client import CallFailed, from_snapshot
from agent.nvmf import initiator
from tests.crash.machine import NODE, Machine, Patient

MIB = 1 << 20
SIZE = 16 * MIB
SSD = {"tier": "ssd"}


@pytest.fixture
async def csi(machine: Machine) -> AsyncIterator[Patient]:
    """A client of an agent on the machine."""
    machine.start_agent()
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


def block(text: str) -> bytes:
    return text.encode().ljust(4096, b".")


async def write(csi: Patient, volume: str, text: str, *offsets: int) -> None:
    async with opened(csi, volume) as host:
        for offset in offsets:
            await host.write(1, offset, block(text))
        await host.flush(1)


async def read(csi: Patient, volume: str, *offsets: int) -> list[str]:
    async with opened(csi, volume) as host:
        return [(await host.read(1, offset, 4096)).rstrip(b".\0").decode() for offset in offsets]


async def code_of(call: object) -> grpc.StatusCode:
    with pytest.raises(CallFailed) as failure:
        await call  # type: ignore[misc]
    code: grpc.StatusCode = failure.value.code
    return code


async def test_a_snapshot_keeps_what_the_volume_had(csi: Patient) -> None:
    volume = await csi.call("create_volume", "v", SIZE, SSD)
    await write(csi, volume, "old", 0, 5 * MIB)
    snapshot = await csi.call("create_snapshot", "s", volume)
    assert (snapshot.source_volume_id, snapshot.size_bytes, snapshot.ready_to_use) == (volume, SIZE, True)
    await write(csi, volume, "new", 0)
    restored = await csi.call("create_volume", "r", 0, SSD, source=from_snapshot(snapshot.snapshot_id))
    assert await read(csi, restored, 0, 5 * MIB, 6 * MIB) == ["old", "old", ""]
    assert await read(csi, volume, 0, 5 * MIB) == ["new", "old"]
    await write(csi, restored, "mine", 0)
    assert await read(csi, volume, 0) == ["new"]
    await csi.call("delete_volume", volume)
    await csi.call("delete_snapshot", snapshot.snapshot_id)
    assert await read(csi, restored, 0, 5 * MIB) == ["mine", "old"]
    await csi.call("delete_volume", restored)
