"""Data whose record was taken away by force: named on their disk, brought back or destroyed as a person says."""

from __future__ import annotations

import asyncio
import json

import pytest

from agent.csi.client import CallFailed, CsiClient
from agent.model import Disk, Volume
from agent.store.kubernetes.store import KubernetesStore

from .cluster import MIB
from .commands import quarry
from .conftest import Opener, until
from .gated import GatedCluster
from .objects import MERGE, VOLUMES
from .plane import Plane

pytestmark = pytest.mark.timeout(300)

SIZE = 16 * MIB
DISKS = "/apis/quarry.storage/v1alpha1/disks"


async def test_data_without_a_record(cluster: GatedCluster, open_store: Opener, plane: Plane) -> None:
    store = await open_store()
    kept, lost = [await cluster.ask(lambda csi, name=name: csi.create_volume(name, SIZE)) for name in ("kept", "lost")]
    async with cluster.opened(kept, "node-b") as host:
        await host.write(1, 0, b"kept" * 1024)
    await _take_by_force(plane, kept)
    await _take_by_force(plane, lost)
    await until(lambda: _is_told(store, kept, lost), 30)
    message = next(
        each.message for disk in await store.list(Disk) for each in disk.status.conditions if each.type == "Unrecorded"
    )
    assert "quarry volumes adopt NAME" in message

    async with CsiClient(cluster.socket(await cluster.leader()), timeout_s=5.0) as csi:
        with pytest.raises(CallFailed, match=f"quarry volumes discard {lost}"):
            await csi.create_volume("lost", SIZE)
    await _wish(store, plane, "discard", lost)
    await until(lambda: _is_told(store, kept), 30)
    assert lost not in set.union(*(await cluster.lvols()).values())
    assert await cluster.ask(lambda csi: csi.create_volume("lost", SIZE)) == lost
    async with cluster.opened(lost, "node-a") as host:
        assert await host.read(1, 0, 4096) == bytes(4096)

    await _wish(store, plane, "adopt", kept)
    await until(lambda: _is_told(store), 30)
    assert await cluster.ask(lambda csi: csi.create_volume("kept", SIZE)) == kept
    found = await store.get(Volume, kept)
    assert found is not None
    assert found.spec.csi_name == "kept"
    async with cluster.opened(kept, "node-b") as host:
        assert await host.read(1, 0, 4096) == b"kept" * 1024
    for disk in await store.list(Disk):
        assert (disk.spec.adopt, disk.spec.discard) == ((), ())


async def test_a_finalizer_that_is_taken_off_is_put_back(
    cluster: GatedCluster, open_store: Opener, plane: Plane
) -> None:
    """Without anybody having to write the volume."""
    store = await open_store()
    volume = await cluster.ask(lambda csi: csi.create_volume("pvc", SIZE))
    path = f"{VOLUMES}/{volume}"
    await asyncio.to_thread(
        plane.request, "PATCH", path, json.dumps({"metadata": {"finalizers": None}}).encode(), MERGE
    )

    async def is_back() -> bool:
        found = await asyncio.to_thread(plane.request, "GET", path)
        return found["metadata"].get("finalizers") == ["quarry.storage/data"]

    await until(is_back, 30)
    assert await store.get(Volume, volume) is not None


async def _take_by_force(plane: Plane, volume: str) -> None:
    """As somebody does whom a deletion takes too long."""
    path = f"{VOLUMES}/{volume}"
    finalizers = json.dumps({"metadata": {"finalizers": None}}).encode()
    await asyncio.to_thread(plane.request, "PATCH", path, finalizers, MERGE)
    await asyncio.to_thread(plane.request, "DELETE", path)


async def _is_told(store: KubernetesStore, *names: str) -> bool:
    disks = await store.list(Disk)
    told = {each.name for disk in disks for each in disk.status.unrecorded}
    conditions = {each.type for disk in disks for each in disk.status.conditions}
    return told == set(names) and ("Unrecorded" in conditions) == bool(names)


async def _wish(store: KubernetesStore, plane: Plane, wish: str, name: str) -> None:
    """By the command, where there is kubectl; else as it does."""
    arguments = ["volumes", wish, name, *(["--yes"] if wish == "discard" else [])]
    done = await quarry(plane, *arguments, plugin=True)
    if done is not None:
        assert done.returncode == 0, done.stderr
        return
    disk = next(disk for disk in await store.list(Disk) if any(each.name == name for each in disk.status.unrecorded))
    patch = json.dumps({"spec": {wish: [name]}}).encode()
    await asyncio.to_thread(plane.request, "PATCH", f"{DISKS}/{disk.meta.name}", patch, MERGE)
