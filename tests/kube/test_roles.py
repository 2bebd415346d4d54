"""`quarry node` and `quarry controller` as processes: the life of volumes, deletion by kubectl, a node's name."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from agent.csi.client import CallFailed, CsiClient, from_snapshot, from_volume
from agent.model import Snapshot, Volume
from agent.store.kubernetes.store import KubernetesStore

from .cluster import MIB, NODES
from .conftest import Opener, until
from .gate import Gate
from .gated import GatedCluster
from .objects import MERGE, VOLUMES
from .plane import Plane

pytestmark = pytest.mark.timeout(300)

SIZE = 64 * MIB


async def test_the_life_of_volumes(cluster: GatedCluster, open_store: Opener) -> None:
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


async def _create(cluster: GatedCluster, name: str) -> str:
    return await cluster.ask(lambda csi: csi.create_volume(name, SIZE))


async def _is_empty(store: KubernetesStore) -> None:
    async def gone() -> bool:
        return not await store.list(Volume) and not await store.list(Snapshot)

    await until(gone)


async def test_deleted_by_kubectl_while_in_use(cluster: GatedCluster, open_store: Opener, gate: Gate) -> None:
    store = await open_store()
    held = await _create(cluster, "held")
    async with cluster.opened(held, "node-b") as host:
        await host.write(1, 0, b"kept" * 1024)
        await cluster.kubectl_delete(held, gate)
        assert await store.get(Volume, held) is not None
        await until(lambda: _is_held(store, held))
        assert await host.read(1, 0, 4096) == b"kept" * 1024
    await until(lambda: _is_absent(store, held))
    await _is_empty(store)


async def test_who_holds_what_is_deleted_is_named(cluster: GatedCluster, open_store: Opener, plane: Plane) -> None:
    """The data are gone, but a backup program has a finalizer on the record."""
    store = await open_store()
    volume = await _create(cluster, "held")
    path = f"{VOLUMES}/{volume}"
    both = json.dumps({"metadata": {"finalizers": ["quarry.storage/data", "example.com/backup"]}}).encode()
    await asyncio.to_thread(plane.request, "PATCH", path, both, MERGE)
    async with CsiClient(cluster.socket(await cluster.leader()), timeout_s=20.0) as csi:

        async def named() -> bool:
            with pytest.raises(CallFailed) as refusal:
                await csi.delete_volume(volume)
            return "example.com/backup" in str(refusal.value)

        await until(named)
    await until(lambda: _is_held(store, volume))
    assert not any(volume in names for names in (await cluster.lvols()).values())
    none = json.dumps({"metadata": {"finalizers": None}}).encode()
    await asyncio.to_thread(plane.request, "PATCH", path, none, MERGE)
    await cluster.ask(lambda csi: csi.delete_volume(volume))
    await until(lambda: _is_absent(store, volume))


async def test_the_way_out_when_an_attachment_was_removed_by_force(cluster: GatedCluster, plane: Plane) -> None:
    """The refusal says it, and it works as it says."""
    volume = await _create(cluster, "stuck")
    await cluster.ask(lambda csi: csi.publish(volume, "node-a", block=True))
    async with CsiClient(cluster.socket(await cluster.leader()), timeout_s=20.0) as csi:
        with pytest.raises(CallFailed) as refusal:
            await csi.publish(volume, "node-b", block=True)
    found = re.search(r"kubectl patch volume (\S+) --type=merge -p '(.*?)'", str(refusal.value))
    assert found is not None, refusal.value
    assert found[1] == volume
    await asyncio.to_thread(plane.request, "PATCH", f"{VOLUMES}/{volume}", found[2].encode(), MERGE)
    async with cluster.opened(volume, "node-b") as host:
        await host.write(1, 0, b"mine" * 1024)


async def test_a_second_agent_of_a_node_is_refused(cluster: GatedCluster) -> None:
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
