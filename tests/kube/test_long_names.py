"""A node whose name is as long as the name of a Kubernetes Node may be: labels, node ids and Leases have less room."""

from __future__ import annotations

import pytest

from agent.csi.client import CsiClient, capability
from agent.csi.pb import csi_pb2 as csi
from agent.model import Volume

from .cluster import MIB
from .conftest import Opener, until
from .gated import GatedCluster

pytestmark = pytest.mark.timeout(300)

SIZE = 16 * MIB


@pytest.mark.parametrize("length", [64, 193, 253])
async def test_a_node_with_a_long_name(cluster: GatedCluster, open_store: Opener, length: int) -> None:
    store = await open_store()
    name = "long-" + ".".join(["n" * 60] * 5)[: length - 6] + "z"
    assert len(name) == length
    cluster.node_names["node-long"] = name
    cluster.start("node-long")
    await cluster.node_ready("node-long")
    async with CsiClient(cluster.socket("node-long"), timeout_s=10.0) as node:
        info = await node.node_info()
    assert len(info.node_id) <= 192
    assert all(len(value) <= 63 for value in info.accessible_topology.segments.values())

    async def make(controller: CsiClient) -> str:
        request = csi.CreateVolumeRequest(
            name="pvc",
            capacity_range=csi.CapacityRange(required_bytes=SIZE),
            volume_capabilities=[capability(block=True)],
            accessibility_requirements=csi.TopologyRequirement(requisite=[info.accessible_topology]),
        )
        made: csi.CreateVolumeResponse = await controller.call("Controller/CreateVolume", request)
        return str(made.volume.volume_id)

    volume = await cluster.ask(make)
    found = await store.get(Volume, volume)
    assert found is not None
    assert found.spec.placement[0].node == name
    async with cluster.opened(volume, info.node_id) as host:
        await host.write(1, 0, b"here" * 1024)
        answer = await cluster.ask(lambda csi: csi.get_volume(volume))
        assert list(answer.status.published_node_ids) == [info.node_id]

    async def is_shut() -> bool:
        found = await store.get(Volume, volume)
        return found is not None and found.spec.attachments == ()

    await until(is_shut)
    await cluster.ask(lambda csi: csi.delete_volume(volume))
