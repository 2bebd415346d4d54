"""Topology over the socket: which nodes a volume may be on, in which order, and what room is where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from grpc import StatusCode

from agent.csi.client import CallFailed, capability
from agent.csi.pb import csi_pb2 as csi
from agent.pools.topology import Segment

from .conftest import Driver

NODE = "csi.quarry.storage/node"
ZONE = "csi.quarry.storage/zone"
TIB = 1 << 40


def terms(*segments: Mapping[str, str]) -> list[csi.Topology]:
    return [csi.Topology(segments=each) for each in segments]


async def create(driver: Driver, name: str = "pvc-1", **requirement: Any) -> csi.Volume:
    request = csi.CreateVolumeRequest(
        name=name,
        volume_capabilities=[capability()],
        accessibility_requirements=csi.TopologyRequirement(**requirement),
    )
    response: csi.CreateVolumeResponse = await driver.client.call("Controller/CreateVolume", request)
    return response.volume


async def test_a_node_tells_where_it_is(driver: Driver) -> None:
    info = await driver.client.node_info()
    assert info.node_id == "node-a"
    assert dict(info.accessible_topology.segments) == {NODE: "node-a", ZONE: "rack-1"}
    volume = await create(driver, requisite=[info.accessible_topology], preferred=[info.accessible_topology])
    assert [dict(each.segments) for each in volume.accessible_topology] == [{NODE: "node-a"}]


@pytest.mark.parametrize(
    "segments",
    [
        {NODE: "node-a"},
        {NODE: "node-a", ZONE: "rack-1"},
        {ZONE: "rack-1"},
        {"topology.kubernetes.io/zone": "rack-1"},
        {ZONE: "rack-1", "topology.kubernetes.io/zone": "rack-1"},
        {"CSI.Quarry.storage/Zone": "rack-1"},
        {},
    ],
)
async def test_places_that_are_here(driver: Driver, segments: dict[str, str]) -> None:
    await create(driver, requisite=terms({NODE: "node-b"}, segments))
    answer = await driver.client.get_capacity({"tier": "ssd"}, segments)
    sizes = answer.available_capacity, answer.maximum_volume_size.value, answer.minimum_volume_size.value
    assert sizes == (2 * TIB, TIB, 1 << 20)


@pytest.mark.parametrize(
    "segments",
    [
        {NODE: "node-b"},
        {NODE: "node-a", ZONE: "rack-2"},
        {ZONE: "Rack-1"},
        {ZONE: "rack-1", "topology.kubernetes.io/zone": "rack-2"},
        {"example.org/row": "7"},
        {NODE: "node-a", "example.org/row": "7"},
    ],
)
async def test_places_that_are_not_here_have_no_room(driver: Driver, segments: dict[str, str]) -> None:
    with pytest.raises(CallFailed) as refused:
        await create(driver, requisite=terms(segments))
    assert refused.value.code is StatusCode.RESOURCE_EXHAUSTED
    answer = await driver.client.get_capacity({"tier": "ssd"}, segments)
    assert (answer.available_capacity, answer.maximum_volume_size.value) == (0, 0)
    assert answer.HasField("maximum_volume_size") and not answer.HasField("minimum_volume_size")


async def test_the_order_of_preference_reaches_placement(driver: Driver) -> None:
    here, there = {NODE: "node-a"}, {ZONE: "rack-9"}
    await create(driver, requisite=terms(here, there), preferred=terms(there, here))
    assert driver.volumes.preferred == (Segment(zone="rack-9"), Segment(node="node-a"))
    await create(driver, "pvc-2", preferred=terms(there))


@pytest.mark.parametrize("segments", [{NODE: ""}, {"": "x"}, {"example.org/row": ""}])
async def test_a_term_that_says_nothing_is_invalid(driver: Driver, segments: dict[str, str]) -> None:
    for field in ("requisite", "preferred"):
        with pytest.raises(CallFailed) as refused:
            await create(driver, **{field: terms({}, segments)})
        assert refused.value.code is StatusCode.INVALID_ARGUMENT
        assert refused.value.details.startswith(f"accessibility_requirements.{field}[1]")
    with pytest.raises(CallFailed) as refused:
        await driver.client.get_capacity({}, segments)
    assert refused.value.code is StatusCode.INVALID_ARGUMENT


async def test_a_volume_others_can_reach_is_bound_to_no_node(driver: Driver) -> None:
    driver.volumes.address = "192.0.2.7"
    assert not (await create(driver, requisite=terms({NODE: "node-a"}))).accessible_topology


async def test_capacity_is_that_of_the_tier_a_volume_would_get(driver: Driver) -> None:
    assert await driver.client.capacity() == 2 * TIB
    assert await driver.client.capacity({"tier": "hdd", "provisioning": "thick"}) == 0
