"""A disk that is carried to another node of the cluster brings its volumes and snapshots with it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from agent.csi.client import from_snapshot
from agent.model import Disk, DiskPhase, Snapshot, Volume
from agent.store.kubernetes.store import KubernetesStore
from tests.contract.targets import find_spdk_tgt
from tests.disks import loops
from tests.disks.loops import LoopDisk

from .cluster import MIB, NODES, Cluster
from .conftest import Opener, until
from .gated import GatedCluster
from .objects import MERGE
from .plane import Plane

pytestmark = pytest.mark.timeout(400)

DISKS = "/apis/quarry.storage/v1alpha1/disks"
SIZE = 64 * MIB
REAL = (("real", "real"), "disks: {loop_devices: true}\n")
"""Kinds of the targets, and configuration of the agents."""
SSD = {"tier": "ssd"}
"""The loop device is one; the file disks are of tier nvme."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LoopDisk]:
    if find_spdk_tgt() is None:
        pytest.skip("spdk_tgt not found: block devices need the real one")
    if why := loops.missing():
        pytest.skip(why)
    disk = LoopDisk(tmp_path / "carried.img")
    disk.plug()
    yield disk
    disk.close()


@pytest.fixture
async def cluster(disk: LoopDisk, new_cluster: Callable[..., GatedCluster]) -> AsyncIterator[GatedCluster]:
    """Both nodes see the loop device; one has it."""
    async with new_cluster(*REAL).running() as cluster:
        yield cluster


class Record:
    """The Disk of the loop device."""

    def __init__(self, store: KubernetesStore, plane: Plane, loop: LoopDisk) -> None:
        self._store, self._plane, self._loop = store, plane, loop

    async def found(self) -> Disk | None:
        serial = str(self._loop.file)
        return next((each for each in await self._store.list(Disk) if each.status.serial == serial), None)

    async def until(self, wanted: Callable[[Disk], bool]) -> Disk:
        async def is_so() -> bool:
            found = await self.found()
            return found is not None and wanted(found)

        await until(is_so, 60)
        found = await self.found()
        assert found is not None
        return found

    async def want(self, claimed: bool) -> None:
        """As `kubectl patch` does."""
        name = (await self.until(lambda disk: True)).meta.name
        patch = json.dumps({"spec": {"claimed": claimed}}).encode()
        await asyncio.to_thread(self._plane.request, "PATCH", f"{DISKS}/{name}", patch, MERGE)

    async def delete(self) -> None:
        """As `kubectl delete` does. Returns when it is known; there may be a new record by then."""
        name = (await self.until(lambda disk: True)).meta.name
        before = self._store.uid_of("Disk", name)
        await asyncio.to_thread(self._plane.request, "DELETE", f"{DISKS}/{name}")

        async def is_known() -> bool:
            return self._store.uid_of("Disk", name) != before

        await until(is_known)

    async def ready(self, node: str = "") -> str:
        """The node that has it."""
        wanted = (node,) if node else NODES
        disk = await self.until(lambda disk: disk.status.phase is DiskPhase.READY and disk.status.node in wanted)
        return disk.status.node


async def test_a_disk_brings_its_volumes_and_snapshots(
    cluster: Cluster, open_store: Opener, plane: Plane, disk: LoopDisk
) -> None:
    store = await open_store()
    record = Record(store, plane, disk)
    await record.want(claimed=True)
    first = await record.ready()
    (second,) = set(NODES) - {first}
    volume = await cluster.ask(lambda csi: csi.create_volume("pvc", SIZE, SSD))
    async with cluster.opened(volume, second) as host:
        await host.write(1, 0, b"one" * 4096)
    snapshot = (await cluster.ask(lambda csi: csi.create_snapshot("snap", volume))).snapshot_id
    async with cluster.opened(volume, second) as host:
        await host.write(1, 0, b"two" * 4096)

    # The machine is off for good, and the disk is in the other one.
    cluster.kill(first)
    cluster.kill_target(first)
    await record.delete()
    await record.want(claimed=True)
    assert await record.ready(second) == second
    await until(lambda: _lie_on(store, second), 30)
    async with cluster.opened(volume, second) as host:
        assert await host.read(1, 0, 12288) == b"two" * 4096
    source = from_snapshot(snapshot)
    restored = await cluster.ask(lambda csi: csi.create_volume("restored", SIZE, SSD, source=source))
    async with cluster.opened(restored, second) as host:
        assert await host.read(1, 0, 12288) == b"one" * 4096
    assert (await cluster.ask(lambda csi: csi.expand(volume, 2 * SIZE))).capacity_bytes == 2 * SIZE

    # The former node is back: the disk is another one's now. That one loses it, and it goes back.
    cluster.start_target(first)
    cluster.start(first)
    await cluster.node_ready(first)
    assert await record.ready() == second
    disk.pull()
    await record.until(lambda disk: disk.status.phase is DiskPhase.MISSING)
    cluster.kill(second)
    disk.plug()
    assert await record.ready(first) == first
    await until(lambda: _lie_on(store, first), 30)
    cluster.start(second)
    await cluster.node_ready(second)
    for name, data in ((volume, b"two"), (restored, b"one")):
        async with cluster.opened(name, second) as host:
            assert await host.read(1, 0, 12288) == data * 4096

    for name in (volume, restored):
        await cluster.ask(lambda csi, name=name: csi.delete_volume(name))
    await cluster.ask(lambda csi: csi.delete_snapshot(snapshot))
    await record.want(claimed=False)
    await record.until(lambda disk: disk.status.phase is DiskPhase.AVAILABLE)
    assert disk.is_blank()
    await until(lambda: _is_empty(store))


async def _lie_on(store: KubernetesStore, node: str) -> bool:
    volumes, snapshots = await store.list(Volume), await store.list(Snapshot)
    here = {each.spec.placement[0].node for each in volumes} | {each.spec.node for each in snapshots}
    return here == {node} and all(each.status.observed == each.meta.generation for each in (*volumes, *snapshots))


async def _is_empty(store: KubernetesStore) -> bool:
    return not await store.list(Volume) and not await store.list(Snapshot)
