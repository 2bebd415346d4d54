"""A node that is dead is seen; one that is gone for good is forgotten, and serves nothing if it returns."""

from __future__ import annotations

import asyncio
import signal

import pytest

from agent.csi.client import CallFailed, CsiClient
from agent.model import ALIVE, Condition, ConditionStatus, Disk, DiskPhase, Snapshot, StorageNode, Volume, VolumePhase
from agent.store.kubernetes.store import KubernetesStore

from .cluster import MIB, NODES
from .commands import quarry
from .conftest import Opener, until
from .gated import GatedCluster
from .plane import Plane

pytestmark = pytest.mark.timeout(400)

SIZE = 16 * MIB
DEAD_S = 90.0
API = "/apis/quarry.storage/v1alpha1"


async def test_a_dead_node_is_seen(cluster: GatedCluster, open_store: Opener, plane: Plane) -> None:
    store = await open_store()
    volume = await cluster.ask(lambda csi: csi.create_volume("pvc", SIZE))
    node = await _node_of(store, volume)
    await until(lambda: _is_alive(store, node, "True"), DEAD_S)
    cluster.kill(node)
    await until(lambda: _is_alive(store, node, "False"), DEAD_S)
    found = await store.get(StorageNode, node)
    assert found is not None
    assert found.status.target_state == "Unknown"
    assert f"quarry nodes forget {node}" in _condition(found.status.conditions, ALIVE).message
    await until(lambda: _is_away(store, volume, True), DEAD_S)

    async def is_disk_away() -> bool:
        # The machine that runs this may have a disk of its own, which carries no data of ours.
        disks = [each for each in await store.list(Disk) if each.status.node == node and each.status.pool.uuid]
        return [_condition(each.status.conditions, "DataAway").reason for each in disks] == ["NodeDead"]

    await until(is_disk_away)

    async def told() -> bool:
        events = await asyncio.to_thread(plane.events, "StorageNode", node)
        return any(each["reason"] == "NodeDead" and each["type"] == "Warning" for each in events)

    await until(told)
    answer = await cluster.ask(lambda csi: csi.get_volume(volume))
    assert answer.status.volume_condition.abnormal
    cluster.start(node)
    await cluster.node_ready(node)
    await until(lambda: _is_alive(store, node, "True"), DEAD_S)
    await until(lambda: _is_away(store, volume, False), DEAD_S)

    async def is_ready() -> bool:
        found = await store.get(StorageNode, node)
        return found is not None and found.status.target_state == "Ready"

    await until(is_ready)


async def test_what_a_forgotten_node_had_is_given_up(cluster: GatedCluster, open_store: Opener, plane: Plane) -> None:
    """The machine is off. It comes back all the same, with its disk."""
    store = await open_store()
    published, kept, snapped = [
        await cluster.ask(lambda csi, number=number: csi.create_volume(f"pvc-{number}", SIZE)) for number in range(3)
    ]
    node = await _node_of(store, published)
    # All on one node: the others are where there is room as well.
    names = [each for each in (published, kept, snapped) if await _node_of(store, each) == node]
    number = 3
    while len(names) < 3:
        more = await cluster.ask(lambda csi, number=number: csi.create_volume(f"pvc-{number}", SIZE))
        names += [more] if await _node_of(store, more) == node else []
        number += 1
    published, kept, snapped = names
    others = {each.meta.name for each in await store.list(Volume)} - {published, snapped}
    (other,) = set(NODES) - {node}
    snapshot = (await cluster.ask(lambda csi: csi.create_snapshot("snap", snapped))).snapshot_id
    await cluster.ask(lambda csi: csi.publish(published, other, block=True))
    await until(lambda: _is_alive(store, node, "True"), DEAD_S)
    refusal = await _forget(plane, node)
    assert refusal is None or "is not known to be dead" in refusal
    cluster.kill(node)
    cluster.kill_target(node)
    await until(lambda: _is_alive(store, node, "False"), DEAD_S)
    assert not await _forget(plane, node)
    for name in names:
        await until(lambda name=name: _is_given_up(store, name), DEAD_S)
    await cluster.ask(lambda csi: csi.unpublish(published, other))
    await cluster.ask(lambda csi: csi.delete_volume(published))
    await cluster.ask(lambda csi: csi.delete_snapshot(snapshot))
    await cluster.ask(lambda csi: csi.delete_volume(snapped))
    await until(lambda: _are_left(store, *others))
    await until(lambda: _has_no_lease(plane, cluster.namespace, node), DEAD_S)

    cluster.start_target(node)
    cluster.start(node)
    await cluster.node_ready(node)
    await until(lambda: _has_ready_disk(store, node), 60)
    assert {published, kept, snapped} <= (await cluster.lvols())[node]
    assert (await cluster.exports())[node] == set()
    assert await _is_given_up(store, kept)
    async with CsiClient(cluster.socket(await cluster.leader()), timeout_s=5.0) as csi:
        with pytest.raises(CallFailed, match="was forgotten"):
            await csi.publish(kept, other, block=True)
    await cluster.ask(lambda csi: csi.delete_volume(kept))
    await until(lambda: _are_left(store, *(others - {kept})))
    await cluster.whole()


async def test_a_forgotten_node_that_runs_stops_serving(
    cluster: GatedCluster, open_store: Opener, plane: Plane
) -> None:
    """It was only cut off: its agent and its target never ended."""
    store = await open_store()
    volume = await cluster.ask(lambda csi: csi.create_volume("pvc", SIZE))
    node = await _node_of(store, volume)
    (other,) = set(NODES) - {node}
    await cluster.ask(lambda csi: csi.publish(volume, other, block=True))
    cluster.signal(node, signal.SIGSTOP)
    await until(lambda: _is_alive(store, node, "False"), DEAD_S)
    assert not await _forget(plane, node)
    await until(lambda: _is_given_up(store, volume), DEAD_S)
    await cluster.ask(lambda csi: csi.unpublish(volume, other))
    await cluster.ask(lambda csi: csi.delete_volume(volume))
    await until(lambda: _are_left(store))
    assert len((await cluster.exports())[node]) == 1
    cluster.signal(node, signal.SIGCONT)

    async def serves_nothing() -> bool:
        return not (await cluster.exports())[node]

    await until(serves_nothing, 60)
    assert volume in (await cluster.lvols())[node]
    await cluster.node_ready(node)


async def _forget(plane: Plane, node: str) -> str | None:
    """By the command, where there is kubectl; else what it does is done. Returns the command's refusal; "": none."""
    done = await quarry(plane, "nodes", "forget", node, "--yes")
    if done is not None:
        assert bool(done.returncode) == bool(done.stderr), done
        return done.stderr
    found = await asyncio.to_thread(plane.request, "GET", f"{API}/storagenodes/{node}")
    if any(each["type"] == ALIVE and each["status"] != "False" for each in found["status"]["conditions"]):
        return None
    await asyncio.to_thread(plane.request, "DELETE", f"{API}/storagenodes/{node}")
    for disk in (await asyncio.to_thread(plane.request, "GET", f"{API}/disks"))["items"]:
        if disk["status"]["node"] == node:
            await asyncio.to_thread(plane.request, "DELETE", f"{API}/disks/{disk['metadata']['name']}")
    return ""


async def _node_of(store: KubernetesStore, volume: str) -> str:
    found: Volume | None = None

    async def is_known() -> bool:
        nonlocal found
        found = await store.get(Volume, volume)
        return found is not None

    await until(is_known)
    assert found is not None
    return found.spec.placement[0].node


def _condition(conditions: tuple[Condition, ...], kind: str) -> Condition:
    return next((each for each in conditions if each.type == kind), Condition(kind, ConditionStatus.UNKNOWN))


async def _is_alive(store: KubernetesStore, node: str, status: str) -> bool:
    found = await store.get(StorageNode, node)
    conditions = found.status.conditions if found else ()
    return any((each.type, each.status) == (ALIVE, status) for each in conditions)


async def _is_away(store: KubernetesStore, volume: str, wanted: bool) -> bool:
    found = await store.get(Volume, volume)
    return found is not None and wanted == any(each.type == "DataAway" for each in found.status.conditions)


async def _is_given_up(store: KubernetesStore, volume: str) -> bool:
    found = await store.get(Volume, volume)
    if found is None or found.spec.placement:
        return False
    return found.status.phase is VolumePhase.FAILED and "was forgotten" in found.status.message


async def _are_left(store: KubernetesStore, *volumes: str) -> bool:
    return {each.meta.name for each in await store.list(Volume)} == set(volumes) and not await store.list(Snapshot)


async def _has_ready_disk(store: KubernetesStore, node: str) -> bool:
    return any(each.status.node == node and each.status.phase is DiskPhase.READY for each in await store.list(Disk))


async def _has_no_lease(plane: Plane, namespace: str, node: str) -> bool:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
    found = await asyncio.to_thread(plane.request, "GET", path)
    return f"quarry-node-{node}" not in {each["metadata"]["name"] for each in found["items"]}
