"""The store of a cluster: deletion by kubectl, finalizers of ours and of others."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from agent.errors import Conflict, FailedPrecondition, Unavailable
from agent.model import (
    Meta,
    Snapshot,
    SnapshotGroup,
    SnapshotGroupSpec,
    SnapshotSpec,
    Volume,
)
from agent.store.interface import EventType
from agent.store.kubernetes.kinds import FINALIZER
from agent.store.kubernetes.store import KubernetesStore

from .conftest import Opener, until
from .gate import Gate, Rule
from .objects import MERGE, VOLUMES, names, volume
from .plane import Plane


@pytest.mark.parametrize(
    "resource",
    [
        volume("x"),
        Snapshot(Meta("x"), SnapshotSpec("csi", "vol-1")),
        SnapshotGroup(Meta("x"), SnapshotGroupSpec("csi", ("vol-1",), ("snap-1",))),
    ],
    ids=lambda resource: type(resource).__name__,
)
async def test_deleted_by_kubectl_it_waits_for_us(
    store: KubernetesStore, plane: Plane, resource: Volume | Snapshot | SnapshotGroup
) -> None:
    kind = type(resource)
    made = await store.create(resource)
    watch = store.watch(kind)
    path = f"/apis/quarry.storage/v1alpha1/{kind.__name__.lower()}s/x"
    await asyncio.to_thread(plane.request, "DELETE", path)
    event = await asyncio.wait_for(anext(watch), 10)
    assert (event.type, event.resource and event.resource.meta.deleting) == (EventType.MODIFIED, True)
    found = await store.get(kind, "x")
    assert found is not None
    assert (found.meta.deleting, found.spec) == (True, made.spec)
    with pytest.raises(Conflict):
        await store.update(made)
    with pytest.raises(FailedPrecondition, match="being deleted"):
        await store.update(replace(found, meta=replace(found.meta, deleting=False)))
    await store.delete(kind, "x")
    assert await store.get(kind, "x") is None
    assert (await asyncio.wait_for(anext(watch), 10)).type is EventType.DELETED
    assert (await asyncio.to_thread(plane.request, "GET", path.removesuffix("/x")))["items"] == []


async def test_what_others_hold_stays_until_they_let_go(store: KubernetesStore, plane: Plane) -> None:
    await store.create(volume())
    patch = json.dumps({"metadata": {"finalizers": [FINALIZER, "example.com/backup"]}}).encode()
    await asyncio.to_thread(plane.request, "PATCH", f"{VOLUMES}/vol-a", patch, MERGE)
    await store.delete(Volume, "vol-a")
    found = await store.get(Volume, "vol-a")
    assert found is not None
    assert found.meta.deleting
    patch = b'{"metadata":{"finalizers":null}}'
    await asyncio.to_thread(plane.request, "PATCH", f"{VOLUMES}/vol-a", patch, MERGE)

    async def gone() -> bool:
        return await store.get(Volume, "vol-a") is None

    await until(gone)
    await store.delete(Volume, "vol-a")


async def test_a_finalizer_that_was_taken_off_comes_back(store: KubernetesStore, plane: Plane) -> None:
    await store.create(volume())
    patch = b'{"metadata":{"finalizers":null}}'
    version = (await asyncio.to_thread(plane.request, "PATCH", f"{VOLUMES}/vol-a", patch, MERGE))["metadata"]

    async def seen() -> bool:
        found = await store.get(Volume, "vol-a")
        return found is not None and found.meta.version == int(version["resourceVersion"])

    await until(seen)
    found = await store.get(Volume, "vol-a")
    assert found is not None
    await store.update(replace(found, meta=replace(found.meta, deleting=True)))
    assert names(plane) == {"vol-a"}
    await store.delete(Volume, "vol-a")
    assert names(plane) == set()


async def test_a_deletion_that_was_cut_off_is_finished_by_repeating_it(
    store: KubernetesStore, open_store: Opener, gate: Gate, plane: Plane
) -> None:
    await store.create(volume())
    gate.rules = [Rule("PATCH", status=500)]
    with pytest.raises(Unavailable):
        await store.delete(Volume, "vol-a")
    gate.rules = []
    after = await open_store()
    found = await after.get(Volume, "vol-a")
    assert found is not None
    assert found.meta.deleting
    await after.delete(Volume, "vol-a")
    assert names(plane) == set()
