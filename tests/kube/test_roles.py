"""`quarry node` and `quarry controller` as processes, against a real API server: work, deaths, and what is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from agent.csi.client import from_snapshot, from_volume
from agent.model import Snapshot, Volume
from agent.store.kubernetes.store import KubernetesStore

from .cluster import CONTROLLERS, MIB, NODES, Cluster
from .conftest import Opener, until
from .control_plane import ControlPlane
from .gate import Gate

pytestmark = pytest.mark.timeout(300)

SIZE = 64 * MIB


@pytest.fixture
async def cluster(plane: ControlPlane, gate: Gate) -> AsyncIterator[Cluster]:
    made = Cluster(gate.kubeconfig)
    try:
        made.start_all()
        for name in NODES:
            await made.node_ready(name)

        async def both_disks() -> bool:  # a thin pool of 2 GiB takes 20 GiB of volumes
            return await made.ask(lambda csi: csi.capacity()) > 25 << 30

        await until(both_disks, 60.0)
        yield made
    finally:
        await asyncio.to_thread(made.stop)


async def test_the_life_of_volumes(cluster: Cluster, open_store: Opener) -> None:
    store = await open_store()
    made = [await _create(cluster, f"pvc-{number}") for number in range(4)]
    placed = [await store.get(Volume, name) for name in made]
    assert {each.spec.placement[0].node for each in placed if each} == set(NODES)
    first, second = made[0], made[1]
    async with cluster.opened(first, "node-b") as host:
        await host.write(1, 0, b"one" * 4096)
    snapshot = await cluster.ask(lambda csi: csi.create_snapshot("snap", first))
    assert snapshot.ready_to_use
    async with cluster.opened(first, "node-a") as host:
        await host.write(1, 0, b"two" * 4096)
    source = from_snapshot(snapshot.snapshot_id)
    restored = await cluster.ask(lambda csi: csi.create_volume("restored", SIZE, source=source))
    async with cluster.opened(restored, "node-b") as host:
        assert await host.read(1, 0, 12288) == b"one" * 4096
    clone_of = from_volume(first)
    clone = await cluster.ask(lambda csi: csi.create_volume("clone", SIZE, source=clone_of))
    async with cluster.opened(clone, "node-a") as host:
        assert await host.read(1, 0, 12288) == b"two" * 4096
    grown = await cluster.ask(lambda csi: csi.expand(second, 2 * SIZE))
    assert grown.capacity_bytes == 2 * SIZE
    await cluster.ask(lambda csi: csi.modify(second, {"iops": "5000"}))
    await cluster.ask(lambda csi: csi.delete_snapshot(snapshot.snapshot_id))
    for name in (*made, restored, clone):
        await cluster.ask(lambda csi, name=name: csi.delete_volume(name))
    await _is_empty(store)


async def _create(cluster: Cluster, name: str) -> str:
    return await cluster.ask(lambda csi: csi.create_volume(name, SIZE))


async def _is_empty(store: KubernetesStore) -> None:
    async def gone() -> bool:
        return not await store.list(Volume) and not await store.list(Snapshot)

    await until(gone)


async def test_deaths(cluster: Cluster, open_store: Opener, gate: Gate) -> None:
    store = await open_store()
    creating = [asyncio.create_task(_create(cluster, f"pvc-{number}")) for number in range(12)]
    await asyncio.wait(creating, return_when=asyncio.FIRST_COMPLETED)
    leader = await cluster.leader()
    cluster.kill(leader)
    made = await asyncio.gather(*creating)
    assert len(set(made)) == len(made) == len(await store.list(Volume))
    cluster.start(leader)

    held = made[0]
    async with cluster.opened(held, "node-b") as host:
        await host.write(1, 0, b"kept" * 1024)
        await cluster.kubectl_delete(held, gate)
        volume = await store.get(Volume, held)
        assert volume is not None
        await until(lambda: _is_held(store, held))
        assert await host.read(1, 0, 4096) == b"kept" * 1024
    await until(lambda: _is_absent(store, held))

    cluster.kill("node-a")
    cluster.start("node-a")
    for name in made[1:]:
        await cluster.ask(lambda csi, name=name: csi.delete_volume(name))
    await _is_empty(store)

    before = len(gate.seen)
    await asyncio.sleep(10.0)  # what is done while there is nothing to do
    assert len(gate.seen) - before < 40, gate.seen[before:]


async def test_a_second_agent_of_a_node_is_refused(cluster: Cluster) -> None:
    cluster.start("node-a-again", "--node-name", "node-a")
    async with asyncio.timeout(60):
        while cluster.ended("node-a-again") is None:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.1)
    assert cluster.ended("node-a-again")
    assert "another agent" in cluster.log("node-a-again")
    await cluster.node_ready("node-a")


async def _is_held(store: KubernetesStore, name: str) -> bool:
    volume = await store.get(Volume, name)
    return volume is not None and any(each.type == "DeletionHeld" for each in volume.status.conditions)


async def _is_absent(store: KubernetesStore, name: str) -> bool:
    return await store.get(Volume, name) is None


async def test_the_api_goes_away(cluster: Cluster, open_store: Opener, plane: ControlPlane) -> None:
    store = await open_store()
    first = await _create(cluster, "before")
    async with cluster.opened(first, "node-b") as host:
        plane.kill("kube-apiserver")
        plane.kill("etcd")
        for _ in range(30):  # longer than a leader may lead without a word from the API
            await host.write(1, 0, b"goes on!" * 512)
            await asyncio.sleep(0.5)
        assert await host.read(1, 0, 4096) == b"goes on!" * 512
        plane.recover()
        async with asyncio.timeout(60):
            while not any(cluster.ended(name) is not None for name in CONTROLLERS):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        cluster.revive()
        second = await _create(cluster, "after")
        assert await host.read(1, 0, 4096) == b"goes on!" * 512
    for name in (first, second):
        await cluster.ask(lambda csi, name=name: csi.delete_volume(name))
    await _is_empty(store)
