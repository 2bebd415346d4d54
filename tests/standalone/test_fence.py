"""Publishing opens the door for one host and unpublishing shuts it: seen by another target's own NVMe initiator."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from agent.errors import RpcError
from agent.spdk import app, bdev, nvme_controller, nvmf
from agent.spdk.client import Client
from agent.volumes.rules.names import volume_nqn
from tests.contract.targets import Target, find_spdk_tgt
from tests.crash.machine import NODE, Machine, Patient

MIB = 1 << 20
STRANGER = "nqn.2014-08.org.nvmexpress:uuid:99999999-2222-3333-4444-555555555555"


@pytest.fixture(params=["embedded", "real"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Machine, Client]]:
    """A machine with its agent, and a client of a second target that plays the host."""
    if request.param == "real" and find_spdk_tgt() is None:
        pytest.skip("spdk_tgt not found (SPDK_TGT or PATH)")
    machine, host = Machine(request.param), Target(request.param, core=0)
    try:
        machine.target.start()
        machine.start_agent()
        host.start()
        async with Client(host.socket_path, call_timeout_s=30) as rpc:
            await rpc.wait_connected(30)
            await app.wait_init(rpc)
            yield machine, rpc
    finally:
        host.close()
        machine.close()


async def test_the_door_opens_and_shuts(pair: tuple[Machine, Client]) -> None:
    machine, host = pair
    csi = Patient(machine.endpoint)
    try:
        await csi.wait_ready()
        volume = await csi.call("create_volume", "pvc", 16 * MIB, {"tier": "ssd"})
        context = await csi.call("publish", volume, NODE)

        async def attach(name: str, hostnqn: str) -> list[str]:
            return await nvme_controller.attach(
                host, name, context["address"], int(context["port"]), context["nqn"], hostnqn=hostnqn
            )

        with pytest.raises(RpcError):
            await attach("stranger", STRANGER)
        assert await attach("friend", context["hostNqn"]) == ["friendn1"]
        seen = await bdev.get(host, "friendn1")
        assert seen is not None
        assert (seen.uuid, seen.size_bytes) == (context["uuid"], 16 * MIB)

        await csi.call("expand", volume, 32 * MIB)
        await until_size(host, 32 * MIB)

        async with Client(machine.target.socket_path) as target:
            await target.wait_connected(10)
            assert len(await nvmf.get_controllers(target, volume_nqn(volume))) == 1
            await csi.call("unpublish", volume, NODE)
            assert await nvmf.get_controllers(target, volume_nqn(volume)) == []
        with pytest.raises(RpcError):
            await attach("too-late", context["hostNqn"])
        await csi.call("delete_volume", volume)
    finally:
        await csi.close()


async def until_size(host: Client, size_bytes: int) -> None:
    """Return when the host sees the new size, by the namespace change event."""
    deadline = time.monotonic() + 20
    while (seen := await bdev.get(host, "friendn1")) is None or seen.size_bytes != size_bytes:
        assert time.monotonic() < deadline, f"the host still sees {seen}"
        await asyncio.sleep(0.05)
