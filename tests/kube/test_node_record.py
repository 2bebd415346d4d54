"""A node is the host its state folder says: whatever becomes of its record, nobody is shut out or wrongly let in."""

from __future__ import annotations

import asyncio
import json

import pytest

from agent.csi.client import CallFailed, CsiClient
from agent.model import Disk, DiskPhase, StorageNode, Volume
from agent.nvmf import initiator
from agent.store.kubernetes.store import KubernetesStore

from .cluster import MIB
from .conftest import Opener, until
from .gated import GatedCluster
from .objects import MERGE, VOLUMES
from .plane import Plane

pytestmark = pytest.mark.timeout(300)

DISKS = "/apis/quarry.storage/v1alpha1/disks"
NODES = "/apis/quarry.storage/v1alpha1/storagenodes"
SIZE = 16 * MIB
EMPTY = json.dumps({"status": None}).encode()


async def test_the_host_nqn_outlives_its_record(cluster: GatedCluster, open_store: Opener, plane: Plane) -> None:
    store = await open_store()
    nqn = await _nqn(store)
    volume = await cluster.ask(lambda csi: csi.create_volume("pvc", SIZE))
    async with cluster.opened(volume, "node-b") as host:
        await host.write(1, 0, b"kept" * 1024)
        before = store.uid_of("StorageNode", "node-b")
        await asyncio.to_thread(plane.request, "DELETE", f"{NODES}/node-b")
        await _whole(store, nqn, other_than=before)
        await asyncio.to_thread(plane.request, "PATCH", f"{NODES}/node-b/status", EMPTY, MERGE)
        await asyncio.sleep(0.5)  # seen by this store too
        await _whole(store, nqn)
        cluster.kill("node-b")
        await asyncio.to_thread(plane.request, "DELETE", f"{NODES}/node-b")
        cluster.start("node-b")
        await cluster.node_ready("node-b")
        assert await host.read(1, 0, 4096) == b"kept" * 1024
    await _whole(store, nqn)
    async with cluster.opened(volume, "node-b") as host:
        assert await host.read(1, 0, 4096) == b"kept" * 1024


async def test_nothing_is_published_to_a_node_that_has_not_told_its_name(
    cluster: GatedCluster, open_store: Opener, plane: Plane
) -> None:
    store = await open_store()
    volume = await cluster.ask(lambda csi: csi.create_volume("pvc", SIZE))
    placed = await store.get(Volume, volume)
    assert placed is not None
    (other,) = {"node-a", "node-b"} - {placed.spec.placement[0].node}
    cluster.kill(other)
    await asyncio.to_thread(plane.request, "PATCH", f"{NODES}/{other}/status", EMPTY, MERGE)
    async with CsiClient(cluster.socket(await cluster.leader()), timeout_s=5.0) as csi:

        async def refused() -> bool:
            with pytest.raises(CallFailed) as refusal:
                await csi.publish(volume, other, block=True)
            return refusal.value.code.name == "UNAVAILABLE" and "host NQN" in str(refusal.value)

        await until(refused)
    found = await store.get(Volume, volume)
    assert found is not None
    assert found.spec.attachments == ()
    cluster.start(other)
    async with cluster.opened(volume, other) as host:
        await host.write(1, 0, b"open" * 1024)


async def test_attachments_follow_the_host_nqn_of_their_node(
    cluster: GatedCluster, open_store: Opener, plane: Plane
) -> None:
    store = await open_store()
    volume = await cluster.ask(lambda csi: csi.create_volume("pvc", SIZE))
    context = await cluster.ask(lambda csi: csi.publish(volume, "node-b", block=True))
    stale = {"node": "node-b", "hostNqn": "nqn.2014-08.org.nvmexpress:uuid:of-before", "accessMode": "ReadWriteOnce"}
    patch = json.dumps({"spec": {"attachments": [stale]}}).encode()
    patched = await asyncio.to_thread(plane.request, "PATCH", f"{VOLUMES}/{volume}", patch, MERGE)

    async def is_right() -> bool:
        found = await store.get(Volume, volume)
        assert found is not None
        (attachment,) = found.spec.attachments
        settled = found.status.observed == found.meta.generation > patched["metadata"]["generation"]
        return settled and attachment.host_nqn == context["hostNqn"]

    await until(is_right)
    host = await initiator.connect(context["address"], int(context["port"]), context["nqn"], context["hostNqn"])
    await host.close()
    again = await cluster.ask(lambda csi: csi.publish(volume, "node-b", block=True))
    assert again == context
    await cluster.ask(lambda csi: csi.unpublish(volume, "node-b"))


async def _nqn(store: KubernetesStore) -> str:
    node = await store.get(StorageNode, "node-b")
    assert node is not None
    return node.status.host_nqn


async def _whole(store: KubernetesStore, nqn: str, other_than: str = "") -> None:
    """Returns when the record is there with all that it had."""

    async def is_whole() -> bool:
        node = await store.get(StorageNode, "node-b")
        return (
            node is not None
            and store.uid_of("StorageNode", "node-b") != other_than
            and node.status.host_nqn == nqn
            and node.status.addresses != ()
            and node.status.frontends != ()
            and node.status.target_state == "Ready"
            and node.status.target_version != ""
        )

    await until(is_whole)


async def test_a_copied_state_folder_is_refused(cluster: GatedCluster) -> None:
    """Two machines behind one host NQN would both be let in where one is."""
    cluster.kill("node-b")
    folders = [cluster.folder / name / "host-nqn" for name in ("node-a", "node-b")]
    folders[1].write_text(folders[0].read_text())
    cluster.start("node-b")
    async with asyncio.timeout(60):
        while cluster.ended("node-b") is None:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.1)
    assert cluster.ended("node-b")
    assert "node node-a has the same host NQN" in cluster.log("node-b")
    assert "remove this file" in cluster.log("node-b")


async def test_the_record_of_a_file_disk_comes_back(cluster: GatedCluster, open_store: Opener, plane: Plane) -> None:
    """Deleted, and emptied, while a volume on it is written: nothing is restarted, nothing is lost."""
    store = await open_store()
    volume = await cluster.ask(lambda csi: csi.create_volume("pvc", SIZE))
    placed = await store.get(Volume, volume)
    assert placed is not None
    node, name = placed.spec.placement[0].node, placed.spec.placement[0].disk

    async def is_whole(other_than: str = "") -> bool:
        disk = await store.get(Disk, name)
        return (
            disk is not None
            and store.uid_of("Disk", name) != other_than
            and (disk.status.phase, disk.status.node, disk.spec.claimed) == (DiskPhase.READY, node, True)
            and disk.status.pool.uuid != ""
        )

    async with cluster.opened(volume, "node-b") as host:
        await host.write(1, 0, b"kept" * 1024)
        before = store.uid_of("Disk", name)
        await asyncio.to_thread(plane.request, "DELETE", f"{DISKS}/{name}")
        await until(lambda: is_whole(before), 30)
        await asyncio.to_thread(plane.request, "PATCH", f"{DISKS}/{name}/status", EMPTY, MERGE)
        await asyncio.sleep(0.5)  # seen by this store too
        await until(is_whole, 30)
        assert await host.read(1, 0, 4096) == b"kept" * 1024
    unclaimed = json.dumps({"spec": {"claimed": False}}).encode()
    await asyncio.to_thread(plane.request, "PATCH", f"{DISKS}/{name}", unclaimed, MERGE)

    async def is_answered() -> bool:
        disk = await store.get(Disk, name)
        return disk is not None and any("file_disks" in each.message for each in disk.status.conditions)

    await until(is_answered, 30)
    async with cluster.opened(volume, "node-b") as host:
        assert await host.read(1, 0, 4096) == b"kept" * 1024
