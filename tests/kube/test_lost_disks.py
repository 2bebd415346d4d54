"""`kubectl delete disk` of a disk that is lost for good: what lay there fails and can be deleted."""

from __future__ import annotations

import asyncio

import pytest

from agent.csi.client import CallFailed, CsiClient
from agent.model import Disk, DiskPhase, Snapshot, SnapshotPhase, Volume, VolumePhase
from agent.store.kubernetes.store import KubernetesStore

from .cluster import MIB, NODES, Cluster
from .conftest import Opener, until
from .plane import Plane

pytestmark = pytest.mark.timeout(300)

DISKS = "/apis/quarry.storage/v1alpha1/disks"
NODE, OTHER = NODES


async def test_what_lay_on_a_deleted_disk_can_be_deleted(cluster: Cluster, open_store: Opener, plane: Plane) -> None:
    store = await open_store()
    volumes = await _volumes_on_each(cluster, store)
    lost = volumes[NODE]
    snapshot = (await cluster.ask(lambda csi: csi.create_snapshot("s", lost))).snapshot_id
    await cluster.ask(lambda csi: csi.publish(lost, OTHER))

    cluster.kill(NODE)
    cluster.kill_target(NODE)  # it would go on serving from the file that it has open
    (cluster.folder / f"{NODE}.img").rename(cluster.folder / "away.img")
    cluster.start_target(NODE)
    cluster.start(NODE)
    await cluster.node_ready(NODE)
    disk = await _missing(store)
    async with CsiClient(cluster.socket(await cluster.leader()), timeout_s=30.0) as csi:
        with pytest.raises(CallFailed, match=f"kubectl delete disk {disk}"):
            await csi.delete_snapshot(snapshot)

    await asyncio.to_thread(plane.request, "DELETE", f"{DISKS}/{disk}")
    await until(lambda: _is_lost(store, lost), 60)
    await cluster.ask(lambda csi: csi.unpublish(lost, OTHER))
    await cluster.ask(lambda csi: csi.delete_volume(lost))
    await until(lambda: _is_deleted(store, snapshot), 60)

    cluster.kill(NODE)
    cluster.start(NODE)
    await cluster.whole()
    assert await cluster.ask(lambda csi: csi.create_volume("again", 16 * MIB, {"tier": "nvme"}))
    assert [each.status.phase for each in await store.list(Disk)].count(DiskPhase.READY) == len(NODES)
    kept = await store.get(Volume, volumes[OTHER])
    assert kept is not None and kept.status.phase is VolumePhase.READY


async def _volumes_on_each(cluster: Cluster, store: KubernetesStore) -> dict[str, str]:
    found = dict[str, str]()
    for number in range(40):
        made = await cluster.ask(lambda csi, name=f"v{number}": csi.create_volume(name, 16 * MIB, {"tier": "nvme"}))
        volume = await store.get(Volume, made)
        assert volume is not None
        if found.setdefault(volume.spec.placement[0].node, made) != made:
            await cluster.ask(lambda csi, name=made: csi.delete_volume(name))
        if len(found) == len(NODES):
            return found
    raise AssertionError(f"all volumes lie on the same node: {found}")


async def _missing(store: KubernetesStore) -> str:
    async def is_so() -> bool:
        return any(each.status.phase is DiskPhase.MISSING for each in await store.list(Disk))

    await until(is_so, 30)
    return next(each.meta.name for each in await store.list(Disk) if each.status.phase is DiskPhase.MISSING)


async def _is_lost(store: KubernetesStore, volume: str) -> bool:
    found = await store.get(Volume, volume)
    return found is not None and found.status.phase is VolumePhase.FAILED


async def _is_deleted(store: KubernetesStore, snapshot: str) -> bool:
    found = await store.get(Snapshot, snapshot)
    assert found is None or found.status.phase is not SnapshotPhase.READY
    return found is None
