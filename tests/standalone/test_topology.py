"""Where the node is, and volumes asked for in places that it is in and in others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import grpc
import pytest

from agent.config.settings import Settings
from agent.csi.client import CallFailed, CsiClient, capability
from agent.csi.pb import csi_pb2 as csi
from agent.daemon.standalone import Standalone

NODE = "csi.quarry.storage/node"
ZONE = "csi.quarry.storage/zone"
MIB = 1 << 20


async def create(client: CsiClient, name: str, *places: Mapping[str, str]) -> csi.Volume:
    request = csi.CreateVolumeRequest(
        name=name,
        capacity_range=csi.CapacityRange(required_bytes=16 * MIB),
        volume_capabilities=[capability()],
        parameters={"tier": "ssd"},
        accessibility_requirements=csi.TopologyRequirement(requisite=[csi.Topology(segments=each) for each in places]),
    )
    response: csi.CreateVolumeResponse = await client.call("Controller/CreateVolume", request)
    return response.volume


async def refused(client: CsiClient, name: str, *places: Mapping[str, str]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(CallFailed) as failure:
        await create(client, name, *places)
    return failure.value.code, failure.value.details


async def test_volumes_where_they_are_asked_for(settings: Callable[..., Settings], folder: Path) -> None:
    given = settings(f"{folder}/d0.img:1GiB:ssd", zone="rack-1")
    async with Standalone(given) as agent, CsiClient(given.csi_endpoint) as client:
        await agent.wait_ready(30)
        assert dict((await client.node_info()).accessible_topology.segments) == {NODE: "node-a", ZONE: "rack-1"}
        here = await create(client, "here", {ZONE: "rack-9"}, {ZONE: "rack-1"})
        assert [dict(each.segments) for each in here.accessible_topology] == [{NODE: "node-a"}]
        for place in ({ZONE: "rack-2"}, {NODE: "node-a", ZONE: "rack-2"}, {"example.org/row": "7"}):
            code, details = await refused(client, "elsewhere", place)
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert all(name in details for name in place.values())
            assert (await client.get_capacity({"tier": "ssd"}, place)).available_capacity == 0
        assert len((await client.list_volumes()).entries) == 1
        room = await client.get_capacity({"tier": "ssd", "provisioning": "thick"}, {ZONE: "rack-1"})
        assert 0 < room.maximum_volume_size.value == room.available_capacity < 1 << 30
        assert room.minimum_volume_size.value == MIB

        code, details = await refused(client, "here", {NODE: "node-b"})
        assert code is grpc.StatusCode.ALREADY_EXISTS
        assert "node-a" in details and "node-b" in details
        assert (await create(client, "here", {NODE: "node-b"}, {NODE: "node-a"})).volume_id == here.volume_id
        assert (await create(client, "here")).volume_id == here.volume_id


async def test_a_node_that_is_carried_to_another_zone(settings: Callable[..., Settings], folder: Path) -> None:
    disk = f"{folder}/d0.img:1GiB:ssd"
    given = settings(disk)
    async with Standalone(given) as agent, CsiClient(given.csi_endpoint) as client:
        await agent.wait_ready(30)
        assert dict((await client.node_info()).accessible_topology.segments) == {NODE: "node-a"}
        volume = await create(client, "v")
        assert (await refused(client, "w", {ZONE: "rack-1"}))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    given = settings(disk, zone="rack-1")
    async with Standalone(given) as agent, CsiClient(given.csi_endpoint) as client:
        await agent.wait_ready(30)
        assert (await create(client, "v", {ZONE: "rack-1"})).volume_id == volume.volume_id
        await create(client, "w", {ZONE: "rack-1"})
