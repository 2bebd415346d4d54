"""Snapshots over CSI on a machine with a target: what they hold, what is refused, what names mean."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from agent.csi.client import from_snapshot, from_volume
from agent.daemon.standalone import Standalone
from agent.model import POOL_PREFIX
from agent.spdk import app, lvol
from agent.spdk.client import Client
from tests.crash.machine import NODE, Machine, Patient, holdings
from tests.crash.test_slow_target import Relay, settings
from tests.unit.volumes_node.conftest import have

from .trees import MIB, SIZE, SSD, client_of, code_of, read, wait_lvols, write


@pytest.fixture
async def csi(machine: Machine) -> AsyncIterator[Patient]:
    machine.start_agent()
    async with client_of(machine) as patient:
        yield patient


async def test_a_snapshot_keeps_what_the_volume_had(machine: Machine, csi: Patient) -> None:
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
    await wait_lvols(machine, [])


async def test_repeats_and_refusals(machine: Machine, csi: Patient) -> None:
    volume = await csi.call("create_volume", "v", SIZE, SSD)
    other = await csi.call("create_volume", "other", SIZE, SSD)
    snapshot = await csi.call("create_snapshot", "s", volume, {"csi.storage.k8s.io/volumesnapshot/name": "x"})
    machine.kill_agent()
    machine.start_agent()
    await csi.wait_ready()
    assert await csi.call("create_snapshot", "s", volume) == snapshot
    assert await csi.call("get_snapshot", snapshot.snapshot_id) == snapshot
    client, made_of = csi.client, from_snapshot(snapshot.snapshot_id)
    assert await code_of(client.create_snapshot("s", other)) is grpc.StatusCode.ALREADY_EXISTS
    assert await code_of(client.create_snapshot("t", "vol-" + 32 * "0")) is grpc.StatusCode.NOT_FOUND
    assert await code_of(client.create_snapshot("t", volume, {"tier": "x"})) is grpc.StatusCode.INVALID_ARGUMENT
    small = client.create_volume("r", SIZE - MIB, SSD, source=made_of)
    assert await code_of(small) is grpc.StatusCode.OUT_OF_RANGE
    limited = client.create_volume("r", 0, SSD, limit_bytes=SIZE - MIB, source=made_of)
    assert await code_of(limited) is grpc.StatusCode.OUT_OF_RANGE
    elsewhere = client.create_volume("r", 0, {"tier": "hdd"}, source=made_of)
    assert await code_of(elsewhere) is grpc.StatusCode.INVALID_ARGUMENT
    large = client.create_volume("r", 10 << 50, SSD, source=made_of)
    assert await code_of(large) is grpc.StatusCode.OUT_OF_RANGE
    for missing in (from_snapshot("snap-" + 32 * "0"), from_snapshot("x"), from_volume("vol-" + 32 * "0")):
        assert await code_of(client.create_volume("r", 0, SSD, source=missing)) is grpc.StatusCode.NOT_FOUND
    restored = await csi.call("create_volume", "r", 0, SSD, source=made_of)
    assert await csi.call("create_volume", "r", SIZE, SSD, source=made_of) == restored
    assert await code_of(client.create_volume("r", SIZE, SSD)) is grpc.StatusCode.ALREADY_EXISTS
    clone = client.create_volume("r", SIZE, SSD, source=from_volume(volume))
    assert await code_of(clone) is grpc.StatusCode.ALREADY_EXISTS
    listed = (await csi.call("list_volumes")).entries
    assert {each.volume.volume_id: each.volume.content_source for each in listed}[restored] == made_of
    await client.delete_snapshot("snap-" + 32 * "0")
    await client.delete_snapshot("anything")
    assert [each.snapshot for each in (await client.list_snapshots()).entries] == [snapshot]


async def test_a_volume_made_of_a_snapshot_can_be_larger(machine: Machine, csi: Patient) -> None:
    volume = await csi.call("create_volume", "v", SIZE, SSD)
    await write(csi, volume, "data", SIZE - MIB)
    snapshot = await csi.call("create_snapshot", "s", volume)
    restored = await csi.call("create_volume", "r", 3 * SIZE, SSD, source=from_snapshot(snapshot.snapshot_id))
    assert await read(csi, restored, SIZE - MIB, SIZE, 3 * SIZE - MIB) == ["data", "", ""]
    await write(csi, restored, "more", 3 * SIZE - MIB)
    second = await csi.call("create_snapshot", "s2", restored)
    assert second.size_bytes == 3 * SIZE
    again = await csi.call("create_volume", "r2", 0, SSD, source=from_snapshot(second.snapshot_id))
    assert await read(csi, again, SIZE - MIB, SIZE, 3 * SIZE - MIB) == ["data", "", "more"]
    await csi.call("expand", volume, 2 * SIZE)
    assert await read(csi, volume, SIZE - MIB, SIZE) == ["data", ""]


async def test_a_clone_is_independent_of_its_source(machine: Machine, csi: Patient) -> None:
    volume = await csi.call("create_volume", "v", SIZE, SSD)
    await write(csi, volume, "old", 0, MIB)
    clone = await csi.call("create_volume", "c", 0, SSD, source=from_volume(volume))
    listed = (await csi.call("list_volumes")).entries
    assert {each.volume.volume_id: each.volume.content_source for each in listed}[clone] == from_volume(volume)
    await write(csi, volume, "new", 0)
    await write(csi, clone, "mine", MIB)
    assert await read(csi, volume, 0, MIB) == ["new", "old"]
    assert await read(csi, clone, 0, MIB) == ["old", "mine"]
    assert not (await csi.call("list_snapshots")).entries
    of_clone = await csi.call("create_volume", "cc", 0, SSD, source=from_volume(clone))
    await csi.call("delete_volume", volume)
    await csi.call("delete_volume", clone)
    assert await read(csi, of_clone, 0, MIB) == ["old", "mine"]
    await wait_lvols(machine, [of_clone])  # the internal snapshots went with those who needed them
    again = await csi.call("create_volume", "c", 0, SSD, source=from_volume(of_clone))
    assert await read(csi, again, 0, MIB) == ["old", "mine"]


@pytest.mark.root
async def test_a_clone_that_could_not_be_cut_leaves_nothing(machine: Machine) -> None:
    """Its caller may never come back: nobody knows of the snapshot that was to be its source."""
    if machine.target.kind == "real":
        pytest.skip("the real target has no frontend that mounts without in-tree NVMe/TCP")
    if reason := have("mkfs.xfs"):
        pytest.skip(reason)
    relay = Relay(machine.target.socket_path, machine.folder / "relay.sock")
    pods = machine.folder / "pods"
    given = settings(machine, relay, snapshot={"freeze_timeout_s": 0.3}, mount_roots=(pods,))
    (pods / "staging").mkdir(parents=True)
    async with relay.serving(), Standalone(given) as agent, client_of(machine) as csi:
        await agent.wait_ready(30)
        volume = await csi.call("create_volume", "v", 320 * MIB, {**SSD, "frontend": "loop"})
        await csi.call("publish", volume, NODE)
        await csi.call("stage", volume, pods / "staging", fs_type="xfs")
        try:
            room = await csi.call("capacity", SSD)
            relay.delays = {"bdev_lvol_snapshot": 1.5}
            clone = csi.client.create_volume("c", 0, {**SSD, "frontend": "loop"}, source=from_volume(volume))
            assert await code_of(clone) is grpc.StatusCode.UNAVAILABLE
            relay.delays = {}
            async with asyncio.timeout(20):
                while await csi.call("capacity", SSD) != room:  # noqa: ASYNC110 - counted on its disk until it is gone
                    await asyncio.sleep(0.05)
            await wait_lvols(machine, [volume])
        finally:
            await csi.call("unstage", volume, pods / "staging")


async def test_a_deleted_snapshot_that_others_stand_on_is_hidden(machine: Machine, csi: Patient) -> None:
    volume = await csi.call("create_volume", "v", SIZE, SSD)
    await write(csi, volume, "first", 0)
    first = await csi.call("create_snapshot", "s", volume)
    restored = await csi.call("create_volume", "r", 0, SSD, source=from_snapshot(first.snapshot_id))
    await csi.call("delete_snapshot", first.snapshot_id)
    assert not (await csi.call("list_snapshots")).entries
    assert await code_of(csi.client.get_snapshot(first.snapshot_id)) is grpc.StatusCode.NOT_FOUND
    late = csi.client.create_volume("late", 0, SSD, source=from_snapshot(first.snapshot_id))
    assert await code_of(late) is grpc.StatusCode.NOT_FOUND
    await csi.call("delete_snapshot", first.snapshot_id)

    await write(csi, volume, "second", 0)
    second = await csi.call("create_snapshot", "s", volume)
    assert second.snapshot_id != first.snapshot_id
    again = await csi.call("create_volume", "r2", 0, SSD, source=from_snapshot(second.snapshot_id))
    assert await read(csi, again, 0) == ["second"]
    assert await read(csi, restored, 0) == ["first"]
    machine.kill_agent()
    machine.start_agent()
    await csi.wait_ready()
    assert await csi.call("create_snapshot", "s", volume) == second
    assert first.snapshot_id in (await holdings(machine.target.socket_path)).lvols
    await csi.call("delete_volume", restored)
    await wait_lvols(machine, [volume, again, second.snapshot_id])
    assert await read(csi, again, 0) == ["second"]
    await csi.call("delete_snapshot", second.snapshot_id)
    third = await csi.call("create_snapshot", "s", volume)
    assert third.snapshot_id not in (second.snapshot_id, "")


async def test_a_snapshot_alone_survives_a_restart_of_the_target(machine: Machine, csi: Patient) -> None:
    """A real target does not take it for a snapshot then."""
    volume = await csi.call("create_volume", "v", SIZE, SSD)
    await write(csi, volume, "data", 0)
    snapshot = await csi.call("create_snapshot", "s", volume)
    await csi.call("delete_volume", volume)
    machine.target.restart()
    await csi.wait_ready()
    restored = await csi.call("create_volume", "r", 2 * SIZE, SSD, source=from_snapshot(snapshot.snapshot_id))
    await wait_lvols(machine, [restored, snapshot.snapshot_id])
    assert await read(csi, restored, 0, SIZE) == ["data", ""]
    machine.target.restart()
    await csi.wait_ready()
    assert await read(csi, restored, 0, SIZE) == ["data", ""]


async def test_a_lost_snapshot_is_told(machine: Machine, csi: Patient) -> None:
    volume = await csi.call("create_volume", "v", SIZE, SSD)
    snapshot = await csi.call("create_snapshot", "s", volume)
    machine.kill_agent()
    async with Client(machine.target.socket_path, call_timeout_s=30) as rpc:
        await rpc.wait_connected(10)
        await app.wait_init(rpc)
        pools = [each.name for each in await lvol.list_lvstores(rpc) if each.name.startswith(POOL_PREFIX)]
        await lvol.delete(rpc, f"{pools[0]}/{snapshot.snapshot_id}")
    machine.start_agent()
    await csi.wait_ready()
    refused = csi.client.create_volume("r", 0, SSD, source=from_snapshot(snapshot.snapshot_id))
    assert await code_of(refused) is grpc.StatusCode.FAILED_PRECONDITION
    assert await code_of(csi.client.create_snapshot("s", volume)) is grpc.StatusCode.FAILED_PRECONDITION
    assert not (await csi.call("get_snapshot", snapshot.snapshot_id)).ready_to_use
    await csi.call("delete_snapshot", snapshot.snapshot_id)
    assert (await csi.call("create_snapshot", "s", volume)).ready_to_use


async def test_a_snapshot_counts_as_its_volume_does(machine: Machine, csi: Patient) -> None:
    thick = {"tier": "ssd", "provisioning": "thick"}
    room = await csi.call("capacity", thick)
    third = room // 3 // MIB * MIB
    volume = await csi.call("create_volume", "v", third, thick)
    await csi.call("create_snapshot", "s", volume)
    assert await csi.call("capacity", thick) <= room - 2 * third
    await csi.call("create_snapshot", "s2", volume)
    assert await code_of(csi.client.create_snapshot("s3", volume)) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len((await csi.call("list_snapshots")).entries) == 2
