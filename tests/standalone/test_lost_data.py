"""A volume whose lvol has vanished is closed and reported; an empty one never takes its place."""

from __future__ import annotations

import grpc
import pytest

from agent.csi.client import CallFailed
from agent.model import POOL_PREFIX
from agent.spdk import app, lvol
from agent.spdk.client import Client
from tests.crash.machine import NODE, Machine, Patient, holdings

MIB = 1 << 20


async def test_lost_data_are_not_replaced_by_nothing(machine: Machine) -> None:
    machine.start_agent()
    csi = Patient(machine.endpoint)
    try:
        await csi.wait_ready()
        lost = await csi.call("create_volume", "lost", 16 * MIB, {"tier": "ssd"})
        kept = await csi.call("create_volume", "kept", 16 * MIB, {"tier": "ssd"})
        await csi.call("publish", lost, NODE)
        machine.kill_agent()
        await delete_behind_the_agents_back(machine, lost)
        machine.start_agent()
        await csi.wait_ready()

        found = await holdings(machine.target.socket_path)
        assert found.lvols == [kept]
        assert found.exports[lost] == frozenset(), "nobody may write to a volume without its data"
        await csi.call("unpublish", lost, NODE)
        room = await csi.call("capacity", {"tier": "ssd"})
        for refused in (
            csi.client.publish(lost, NODE),
            csi.client.create_volume("lost", 16 * MIB, {"tier": "ssd"}),
            csi.client.expand(lost, 1024 * MIB),
        ):
            with pytest.raises(CallFailed, match="has failed: its data") as failure:
                await refused
            assert failure.value.code is grpc.StatusCode.FAILED_PRECONDITION
        assert (await holdings(machine.target.socket_path)).lvols == [kept]
        assert await csi.call("capacity", {"tier": "ssd"}) == room, "room was promised to a volume without its data"
        await csi.call("publish", kept, NODE)

        await csi.call("delete_volume", lost)
        listed = await csi.call("list_volumes")
        assert [entry.volume.volume_id for entry in listed.entries] == [kept]
        assert sorted((await holdings(machine.target.socket_path)).exports) == [kept]
    finally:
        await csi.close()


async def delete_behind_the_agents_back(machine: Machine, volume: str) -> None:
    async with Client(machine.target.socket_path, call_timeout_s=30) as rpc:
        await rpc.wait_connected(10)
        await app.wait_init(rpc)
        pools = [each.name for each in await lvol.list_lvstores(rpc) if each.name.startswith(POOL_PREFIX)]
        await lvol.delete(rpc, f"{pools[0]}/{volume}")


@pytest.mark.parametrize("replaced", [False, True], ids=["gone", "replaced by a blank one"])
async def test_a_volume_on_a_missing_disk_waits_for_it(machine: Machine, replaced: bool) -> None:
    machine.start_agent()
    csi = Patient(machine.endpoint)
    try:
        await csi.wait_ready()
        volume = await csi.call("create_volume", "v", 16 * MIB, {"tier": "ssd"})
        machine.kill_agent()
        machine.target.kill()
        away = machine.disk.rename(machine.folder / "away.img")
        if replaced:
            with machine.disk.open("wb") as file:
                file.truncate(1 << 30)
        machine.target.start()
        machine.start_agent()
        await csi.wait_ready()
        with pytest.raises(CallFailed, match=r"disk .* is not ready") as failure:
            await csi.client.publish(volume, NODE)
        assert failure.value.code is grpc.StatusCode.UNAVAILABLE
        assert machine.disk.exists() == replaced
        assert not replaced or machine.disk.stat().st_blocks == 0, "the blank file was written to"

        machine.kill_agent()
        machine.target.kill()
        away.rename(machine.disk)
        machine.target.start()
        machine.start_agent()
        await csi.wait_ready()
        assert (await holdings(machine.target.socket_path)).lvols == [volume]
        await csi.call("publish", volume, NODE)
    finally:
        await csi.close()


async def test_data_without_a_record_are_not_given_to_a_new_volume(machine: Machine) -> None:
    """The database was lost: what lies in the pool may be the only copy, and is not an empty volume."""
    machine.start_agent()
    csi = Patient(machine.endpoint)
    try:
        await csi.wait_ready()
        volume = await csi.call("create_volume", "v", 16 * MIB, {"tier": "ssd"})
        machine.kill_agent()
        for file in (machine.folder / "agent").glob("quarry.db*"):
            file.unlink()
        machine.start_agent()
        await csi.wait_ready()
        with pytest.raises(CallFailed, match="no record") as failure:
            await csi.call("create_volume", "v", 16 * MIB, {"tier": "ssd"})
        assert failure.value.code is grpc.StatusCode.FAILED_PRECONDITION
        await csi.call("delete_volume", volume)
        assert (await holdings(machine.target.socket_path)).lvols == [volume]
        await csi.call("create_volume", "another", 16 * MIB, {"tier": "ssd"})
    finally:
        await csi.close()
