"""What volumes are told to be while something is wrong, and that it passes with the cause."""

from __future__ import annotations

import grpc
import pytest

from agent.csi.client import CallFailed
from agent.model import POOL_PREFIX
from agent.spdk import app, bdev, lvol
from agent.spdk.client import Client
from tests.contract.waiting import until
from tests.crash.machine import NODE, Machine, Patient

MIB = 1 << 20
CONFIG = "{rpc: {heartbeat_interval_s: 0.3}, pool: {refresh_interval_s: 0.1}, reconcile: {audit_interval_s: 0.5}}"
WELL = "the volume is available"


async def message(csi: Patient, volume: str) -> str:
    """How the volume is, by every call that tells it."""
    how = (await csi.call("get_volume", volume)).status.volume_condition
    listed = {each.volume.volume_id: each.status for each in (await csi.call("list_volumes")).entries}
    assert how.abnormal == (how.message != WELL)
    assert listed[volume].HasField("volume_condition")
    return str(how.message)


async def test_while_the_target_is_away(machine: Machine) -> None:
    machine.start_agent(CONFIG)
    csi = Patient(machine.endpoint)
    try:
        await csi.wait_ready()
        volume = await csi.call("create_volume", "v", 16 * MIB, {"tier": "ssd"})
        await csi.call("publish", volume, NODE)
        assert await message(csi, volume) == WELL
        machine.target.kill()
        await until(lambda: message(csi, volume), lambda said: f"target of node {NODE} is Unreachable" in said)
        assert list((await csi.call("get_volume", volume)).status.published_node_ids) == [NODE]
        machine.target.start()
        await until(lambda: message(csi, volume), lambda said: said == WELL)
    finally:
        await csi.close()


async def test_a_disk_that_is_pulled_out(machine: Machine) -> None:
    """Its volumes are neither lost nor served: they wait for it."""
    machine.start_agent(CONFIG)
    csi = Patient(machine.endpoint)
    try:
        await csi.wait_ready()
        volume = await csi.call("create_volume", "v", 16 * MIB, {"tier": "ssd"})
        async with Client(machine.target.socket_path, call_timeout_s=30) as rpc:
            await rpc.wait_connected(10)
            await app.wait_init(rpc)
            (pool,) = [each for each in await lvol.list_lvstores(rpc) if each.name.startswith(POOL_PREFIX)]
            await bdev.aio_delete(rpc, pool.base_bdev)
        said = await until(lambda: message(csi, volume), lambda said: said != WELL)
        assert "is Failed: pool " in said and "is gone from the target" in said
        assert await csi.call("capacity", {"tier": "ssd"}) == 0
        for refused, code in (
            (csi.client.create_volume("w", 16 * MIB, {"tier": "ssd"}), grpc.StatusCode.RESOURCE_EXHAUSTED),
            (csi.client.publish(volume, NODE), grpc.StatusCode.UNAVAILABLE),
        ):
            with pytest.raises(CallFailed) as failure:
                await refused
            assert failure.value.code is code
        machine.target.kill()
        machine.target.start()
        await until(lambda: message(csi, volume), lambda said: said == WELL)
        await csi.call("unpublish", volume, NODE)
        await csi.call("publish", volume, NODE)
    finally:
        await csi.close()


async def test_data_that_are_lost(machine: Machine) -> None:
    machine.start_agent(CONFIG)
    csi = Patient(machine.endpoint)
    try:
        await csi.wait_ready()
        lost = await csi.call("create_volume", "lost", 16 * MIB, {"tier": "ssd"})
        kept = await csi.call("create_volume", "kept", 16 * MIB, {"tier": "ssd"})
        async with Client(machine.target.socket_path, call_timeout_s=30) as rpc:
            await rpc.wait_connected(10)
            (pool,) = [each for each in await lvol.list_lvstores(rpc) if each.name.startswith(POOL_PREFIX)]
            await lvol.delete(rpc, f"{pool.name}/{lost}")
        await until(lambda: message(csi, lost), lambda said: "has failed: its data" in said)
        assert await message(csi, kept) == WELL
    finally:
        await csi.close()
