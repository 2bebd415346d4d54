"""A volume never shows what another one held: not when it is new, and not around what is written to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from agent.nvmf import initiator
from tests.crash.machine import NODE, Machine, Patient

MIB = 1 << 20
SECRET = b"secret of the first volume".ljust(64, b".")
SIZE = 32 * MIB


@asynccontextmanager
async def volume(csi: Patient, name: str, provisioning: str) -> AsyncIterator[initiator.Controller]:
    """A published volume as a host sees it; deleted afterwards."""
    made = await csi.call("create_volume", name, SIZE, {"tier": "ssd", "provisioning": provisioning})
    context = await csi.call("publish", made, NODE)
    address, port = context["address"], int(context["port"])
    host = await initiator.connect(address, port, context["nqn"], context["hostNqn"])
    try:
        yield host
    finally:
        await host.close()
        await csi.call("unpublish", made, NODE)
        await csi.call("delete_volume", made)


@pytest.mark.parametrize("second", ["thin", "thick"])
async def test_nothing_of_a_deleted_volume_is_seen(machine: Machine, second: str) -> None:
    machine.disk.touch()
    with machine.disk.open("r+b") as file:
        file.truncate(96 * MIB)  # so small that the second volume gets the clusters of the first
    machine.start_agent()
    csi = Patient(machine.endpoint)
    try:
        await csi.wait_ready()
        async with volume(csi, "first", "thick") as host:
            for offset in range(0, SIZE, MIB):
                await host.write(1, offset, SECRET * (MIB // len(SECRET)))
            await host.flush(1)
        async with volume(csi, "second", second) as host:
            for offset in range(0, SIZE, MIB):
                assert SECRET not in await host.read(1, offset, MIB)
                await host.write(1, offset + 8192, b"x" * 4096)
                assert SECRET not in await host.read(1, offset, MIB)
    finally:
        await csi.close()
