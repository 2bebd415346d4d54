"""The store of a cluster where it differs from a file: others at work, two subresources, lost answers, a lost API."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from agent.errors import Conflict, DeadlineExceeded, FailedPrecondition, InvalidArgument, Unavailable
from agent.model import (
    AccessMode,
    Attachment,
    Disk,
    Meta,
    Snapshot,
    SnapshotGroup,
    SnapshotGroupSpec,
    SnapshotSpec,
    Tier,
    Volume,
    VolumePhase,
    VolumeSpec,
)
from agent.store.interface import EventType
from agent.store.kubernetes.kinds import FINALIZER
from agent.store.kubernetes.store import KubernetesStore, open_kubernetes

from .conftest import Opener, until
from .control_plane import CRDS, ControlPlane
from .gate import Gate, Rule

VOLUMES = "/apis/quarry.storage/v1alpha1/volumes"
MERGE = "application/merge-patch+json"


def volume(name: str = "vol-a", size_bytes: int = 1 << 30) -> Volume:
    return Volume(Meta(name), VolumeSpec(csi_name=f"pvc-{name}", size_bytes=size_bytes, tier=Tier.SSD))


def resized(of: Volume, size_bytes: int) -> Volume:
    return replace(of, spec=replace(of.spec, size_bytes=size_bytes))


def told(of: Volume, message: str) -> Volume:
    return replace(of, status=replace(of.status, phase=VolumePhase.READY, message=message))


def names(plane: ControlPlane) -> set[str]:
    return {item["metadata"]["name"] for item in plane.request("GET", VOLUMES)["items"]}


# --- what it costs ---------------------------------------------------------------------------------------------


async def test_requests_of_each_operation(store: KubernetesStore, gate: Gate) -> None:
    async def costs() -> list[str]:
        made, gate.seen[:] = gate.writes(), []
        return made

    await costs()
    a = await store.create(volume())
    assert await costs() == ["POST"]
    a = await store.update(resized(a, 2 << 30))
    assert await costs() == ["PATCH"]
    a = await store.update(told(a, "x"))
    assert await costs() == ["PATCH"]
    a = await store.update(told(resized(a, 3 << 30), "y"))
    assert await costs() == ["PATCH", "PATCH"]
    a = await store.update(replace(a, meta=replace(a.meta, deleting=True)))
    assert await costs() == ["DELETE"]
    await store.delete(Volume, a.meta.name)
    assert await costs() == ["PATCH"]
    before = store.requests
    for _ in range(100):
        await store.get(Volume, "vol-a")
        await store.list(Volume)
    assert store.requests == before


async def test_lists_of_more_than_a_page(store: KubernetesStore, open_store: Opener) -> None:
    await asyncio.gather(*(store.create(Disk(Meta(f"d{i}"))) for i in range(620)))
    assert len(await (await open_store()).list(Disk)) == 620


async def test_no_update_of_two_stores_is_lost(open_store: Opener) -> None:
    async def count(store: KubernetesStore) -> None:
        for _ in range(8):
            while True:
                found = await store.get(Volume, "vol-a")
                try:
                    await store.update(resized(found, found.spec.size_bytes + 1) if found else volume())
                    break
                except Conflict:
                    continue

    one, two = await open_store(), await open_store()
    await one.create(volume(size_bytes=1))
    await until(lambda: two.get(Volume, "vol-a"))
    await asyncio.gather(*(count(store) for store in (one, two) for _ in range(4)))
    fresh = await (await open_store()).get(Volume, "vol-a")
    assert fresh is not None
    assert fresh.spec.size_bytes == 1 + 2 * 4 * 8


# --- deletion --------------------------------------------------------------------------------------------------


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
    store: KubernetesStore, plane: ControlPlane, resource: Volume | Snapshot | SnapshotGroup
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


async def test_what_others_hold_stays_until_they_let_go(store: KubernetesStore, plane: ControlPlane) -> None:
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


async def test_a_finalizer_that_was_taken_off_comes_back(store: KubernetesStore, plane: ControlPlane) -> None:
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
    store: KubernetesStore, open_store: Opener, gate: Gate, plane: ControlPlane
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


# --- two subresources ------------------------------------------------------------------------------------------


async def test_cut_off_between_spec_and_status_the_wish_is_kept(
    store: KubernetesStore, open_store: Opener, gate: Gate
) -> None:
    a = await store.create(volume())
    gate.rules = [Rule("PATCH", "/status", status=500)]
    with pytest.raises(Unavailable):
        await store.update(told(resized(a, 5 << 30), "grown"))
    gate.rules = []
    for each in (store, await open_store()):
        found = await each.get(Volume, "vol-a")
        assert found is not None
        assert found.spec.size_bytes == 5 << 30
        assert found.status == a.status
    with pytest.raises(Conflict):
        await store.update(told(resized(a, 5 << 30), "grown"))


@pytest.mark.parametrize("by_others", ["labels", "status"])
async def test_others_between_spec_and_status(
    store: KubernetesStore, gate: Gate, plane: ControlPlane, by_others: str
) -> None:
    a = await store.create(volume())

    async def touch() -> None:
        if by_others == "labels":
            patch, part = b'{"metadata":{"labels":{"team":"blue"}}}', ""
        else:
            patch, part = b'{"status":{"message":"of others"}}', "/status"
        await asyncio.to_thread(plane.request, "PATCH", f"{VOLUMES}/vol-a{part}", patch, MERGE)

    gate.rules = [Rule("PATCH", "/status", times=1, before=touch)]
    wanted = told(resized(a, 5 << 30), "grown")
    if by_others == "labels":
        assert (await store.update(wanted)).status == wanted.status
        stored = await asyncio.to_thread(plane.request, "GET", f"{VOLUMES}/vol-a")
        assert stored["metadata"]["labels"] == {"team": "blue"}
        assert stored["status"]["message"] == "grown"
    else:
        with pytest.raises(Conflict):
            await store.update(wanted)
        found = await store.get(Volume, "vol-a")
        assert found is not None
        assert found.status.message == "of others"


# --- the schemas -----------------------------------------------------------------------------------------------

RWO = (Attachment("n1", "nqn.1"), Attachment("n2", "nqn.2"))
RWX = tuple(replace(each, access_mode=AccessMode.RWX) for each in RWO)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"csi_name": "another"}, "csiName cannot be changed"),
        ({"tier": Tier.HDD}, "tier cannot be changed"),
        ({"parameters": (("a", "b"),)}, "parameters cannot be changed"),
        ({"size_bytes": 0}, "spec.sizeBytes"),
        ({"replica_count": 0}, "spec.replicaCount"),
        ({"attachments": RWO}, "only in access modes that are shared"),
        ({"attachments": (RWX[0], RWX[0])}, "Duplicate"),
        ({"size_bytes": 1 << 63}, "64 bits"),
    ],
    ids=str,
)
async def test_changes_that_are_refused(store: KubernetesStore, change: dict[str, object], says: str) -> None:
    a = await store.create(volume())
    with pytest.raises(InvalidArgument, match=says):
        await store.update(replace(a, spec=replace(a.spec, **change)))  # type: ignore[arg-type]
    assert await store.get(Volume, "vol-a") == a
    b = await store.update(replace(a, spec=replace(a.spec, attachments=RWX)))
    assert b.spec.attachments == RWX


async def test_fields_of_a_newer_version(store: KubernetesStore, gate: Gate, plane: ControlPlane) -> None:
    a = await store.create(replace(volume(), spec=replace(volume().spec, attachments=RWX)))
    crd = yaml.safe_load((CRDS / "volumes.yaml").read_text())
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    spec["colour"] = spec["attachments"]["items"]["properties"]["colour"] = {"type": "string"}
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/volumes.quarry.storage"
    apply = f"{path}?fieldManager=tests&force=true"
    await asyncio.to_thread(plane.request, "PATCH", apply, json.dumps(crd).encode(), "application/apply-patch+yaml")
    try:

        async def colour_is_kept() -> bool:
            answer = await asyncio.to_thread(
                plane.request, "PATCH", f"{VOLUMES}/vol-a", b'{"spec":{"colour":"red"}}', MERGE
            )
            return bool(answer["spec"].get("colour"))

        await until(colour_is_kept)
        gate.cut()  # watches from before the schema's change tell by the old one for up to two minutes

        async def change_goes_through() -> bool:
            found = await store.get(Volume, "vol-a")
            assert found is not None
            try:
                return (await store.update(resized(found, 7 << 30))).spec.size_bytes == 7 << 30
            except Conflict:
                return False

        await until(change_goes_through)
        stored = await asyncio.to_thread(plane.request, "GET", f"{VOLUMES}/vol-a")
        assert stored["spec"]["colour"] == "red"
        stored["spec"]["attachments"][0]["colour"] = "red"
        await asyncio.to_thread(plane.request, "PUT", f"{VOLUMES}/vol-a", stored)

        async def refused() -> bool:
            try:
                await store.list(Volume)
            except FailedPrecondition as error:
                assert "spec.attachments.colour" in str(error)
                return True
            return False

        await until(refused)
        with pytest.raises(FailedPrecondition):
            await store.get(Volume, "vol-a")
        assert a.spec.attachments == RWX
    finally:
        await asyncio.to_thread(plane.install)


# --- an API in need --------------------------------------------------------------------------------------------


async def test_told_to_come_later_it_comes_later(store: KubernetesStore, gate: Gate) -> None:
    gate.rules = [Rule("POST", times=3, status=429, headers={"Retry-After": "1"})]
    began = time.monotonic()
    made = await asyncio.gather(*(store.create(volume(f"v{i}")) for i in range(3)))
    assert len(made) == 3
    assert time.monotonic() - began >= 1.0
    assert gate.writes().count("POST") == 6


@pytest.mark.parametrize("operation", ["create", "update", "delete"])
async def test_a_lost_answer_is_said_and_what_happened_is_seen(
    store: KubernetesStore, gate: Gate, operation: str
) -> None:
    a = await store.create(volume("old"))
    gate.rules = [Rule(method, times=1, lose_answer=True) for method in ("POST", "PATCH", "DELETE")]
    with pytest.raises(Unavailable):
        if operation == "create":
            await store.create(volume("new"))
        elif operation == "update":
            await store.update(resized(a, 9 << 30))
        else:
            await store.delete(Volume, "old")
    gate.rules = []

    async def seen() -> bool:
        found = await store.get(Volume, "new" if operation == "create" else "old")
        if found is None:
            return operation == "delete"
        return operation == "create" or found.meta.version > a.meta.version

    await until(seen)


async def test_an_api_that_is_away_is_waited_for_without_haste(
    store: KubernetesStore, gate: Gate, plane: ControlPlane
) -> None:
    a = await store.create(volume())
    watch = store.watch(Volume)
    plane.kill("kube-apiserver")
    gate.cut()
    before = store.requests
    write = asyncio.ensure_future(store.get(Volume, "vol-a"))
    assert await write == a
    with pytest.raises(Unavailable):
        await store.update(resized(a, 2 << 30))
    await asyncio.sleep(2)  # how much is asked meanwhile is what is tested
    assert store.requests - before < 60
    plane.launch_apiserver()
    await asyncio.to_thread(plane.await_apiserver)

    async def writes_again() -> bool:
        try:
            found = await store.get(Volume, "vol-a")
            assert found is not None
            await store.update(resized(found, 3 << 30))
        except (Unavailable, DeadlineExceeded):
            return False
        return True

    await until(writes_again, 40)
    while True:
        event = await asyncio.wait_for(anext(watch), 30)
        resource = event.resource or await store.get(Volume, "vol-a")
        if resource is not None and resource.spec.size_bytes == 3 << 30:
            break


async def test_a_database_that_stands_still(store: KubernetesStore, plane: ControlPlane) -> None:
    a = await store.create(volume())
    plane.signal("etcd", signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises((Unavailable, DeadlineExceeded)):
        await store.update(resized(a, 2 << 30))
    assert time.monotonic() - began < 20
    assert await store.get(Volume, "vol-a") is not None
    plane.signal("etcd", signal.SIGCONT)

    async def writes_again() -> bool:
        found = await store.get(Volume, "vol-a")
        assert found is not None
        try:
            await store.update(resized(found, found.spec.size_bytes + 1))
        except (Unavailable, DeadlineExceeded, Conflict):
            return False
        return True

    await until(writes_again, 40)


async def test_a_version_that_is_forgotten_is_listed_again(
    store: KubernetesStore, gate: Gate, plane: ControlPlane
) -> None:
    await store.create(volume("stays"))
    await store.create(volume("goes"))
    watch = store.watch(Volume)
    gate.shut()
    async with asyncio.TaskGroup() as group:
        writer = await open_kubernetes(plane.kubeconfig)
        for i in range(20):
            group.create_task(writer.create(volume(f"new{i}")))
    await writer.delete(Volume, "goes")
    await writer.close()
    plane.kill("kube-apiserver")
    plane.launch_apiserver()
    await asyncio.to_thread(plane.await_apiserver)
    await asyncio.to_thread(plane.compact)
    gate.is_shut = False
    event = await asyncio.wait_for(anext(watch), 60)
    assert event.type is EventType.RELIST
    assert {each.meta.name for each in await store.list(Volume)} == {"stays", *(f"new{i}" for i in range(20))}
    last = await store.create(volume("last"))
    assert (await asyncio.wait_for(anext(watch), 10)).resource == last


# --- opening ---------------------------------------------------------------------------------------------------


async def test_without_permission_or_resources_it_says_so(gate: Gate, plane: ControlPlane, tmp_path: Path) -> None:
    gate.rules = [Rule("GET", "/disks", status=404)]
    with pytest.raises(FailedPrecondition, match="kubectl apply -f k8s/crds"):
        await open_kubernetes(gate.kubeconfig)
    other = tmp_path / "other"
    other.write_text(json.dumps(plane.config("nobody")))
    with pytest.raises(Unavailable, match="credentials"):
        await open_kubernetes(other)
    with pytest.raises(FailedPrecondition, match="no usable configuration"):
        await open_kubernetes(tmp_path / "absent")
