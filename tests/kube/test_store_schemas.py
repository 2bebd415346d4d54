"""The store of a cluster: what is refused, fields of newer versions, an API without our resources."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.errors import Conflict, FailedPrecondition, InvalidArgument, NotFound, QuarryError, Unavailable
from agent.model import (
    AccessMode,
    Attachment,
    Meta,
    Replica,
    Snapshot,
    SnapshotPhase,
    SnapshotSpec,
    SnapshotStatus,
    Tier,
    Volume,
    VolumePhase,
)
from agent.store.kubernetes.store import KubernetesStore, open_kubernetes

from .conftest import until
from .control_plane import CRDS
from .gate import Gate, Rule
from .objects import MERGE, VOLUMES, resized, volume
from .plane import Plane

RWO = (Attachment("n1", "nqn.1"), Attachment("n2", "nqn.2"))
RWX = tuple(replace(each, access_mode=AccessMode.RWX) for each in RWO)


@pytest.mark.apiserver("schemas")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"csi_name": "another"}, "csiName cannot be changed"),
        ({"tier": Tier.HDD}, "tier cannot be changed"),
        ({"parameters": (("a", "b"),)}, "parameters cannot be changed"),
        ({"size_bytes": 0}, "spec.sizeBytes"),
        ({"size_bytes": 1 << 29}, "sizeBytes: a volume never shrinks"),
        ({"placement": (Replica("r0", "a", "other"),)}, "the disks of a volume stay"),
        ({"placement": (Replica("r0", "a", "d"), Replica("r1", "b", "d2"))}, "the disks of a volume stay"),
        ({"replica_count": 0}, "spec.replicaCount"),
        ({"attachments": RWO}, "only in access modes that are shared"),
        ({"attachments": (RWX[0], RWX[0])}, "Duplicate"),
        ({"size_bytes": 1 << 63}, "64 bits"),
    ],
    ids=str,
)
async def test_changes_that_are_refused(store: KubernetesStore, change: dict[str, object], says: str) -> None:
    new = volume()
    a = await store.create(replace(new, spec=replace(new.spec, placement=(Replica("r0", "a", "d"),))))
    with pytest.raises(InvalidArgument, match=says):
        await store.update(replace(a, spec=replace(a.spec, **change)))  # type: ignore[arg-type]
    assert await store.get(Volume, "vol-a") == a
    b = await store.update(replace(a, spec=replace(a.spec, attachments=RWX)))
    assert b.spec.attachments == RWX


@pytest.mark.apiserver("schemas")
async def test_what_a_controller_changes(store: KubernetesStore) -> None:
    """A wish to grow is taken back; a disk is in another node, is given up, and adopted."""
    new = volume()
    a = await store.create(replace(new, spec=replace(new.spec, placement=(Replica("r0", "a", "d"),))))
    a = await store.update(replace(a, status=replace(a.status, size_bytes=a.spec.size_bytes)))
    grown = await store.update(resized(a, 2 << 30))
    with pytest.raises(InvalidArgument, match="never shrinks"):
        await store.update(resized(grown, 1 << 29))
    a = await store.update(resized(grown, 1 << 30))
    a = await store.update(replace(a, status=replace(a.status, phase=VolumePhase.READY)))
    a = await store.update(replace(a, spec=replace(a.spec, placement=(Replica("r0", "b", "d"),))))
    with pytest.raises(InvalidArgument, match="keeps its place"):
        await store.update(replace(a, spec=replace(a.spec, placement=())))
    a = await store.update(replace(a, status=replace(a.status, phase=VolumePhase.FAILED)))
    for placement in ((), (Replica("r0", "c", "d3"),)):
        a = await store.update(replace(a, spec=replace(a.spec, placement=placement)))
        assert a.spec.placement == placement


@pytest.mark.apiserver("schemas")
async def test_a_snapshot_with_its_data_keeps_its_place(store: KubernetesStore) -> None:
    spec = SnapshotSpec("s", "vol-a", "a", "d")
    a = await store.create(Snapshot(Meta("snap-a"), spec, SnapshotStatus(SnapshotPhase.READY)))
    with pytest.raises(InvalidArgument, match="keeps its place"):
        await store.update(replace(a, spec=replace(spec, node="")))
    a = await store.update(replace(a, status=replace(a.status, phase=SnapshotPhase.FAILED)))
    assert (await store.update(replace(a, spec=replace(a.spec, node="")))).spec.node == ""


INVALID = {
    "kind": "Status",
    "message": 'Volume.quarry.storage "vol-a" is invalid: spec.tier: Invalid value: tier cannot be changed',
    "reason": "Invalid",
    "details": {"name": "vol-a", "causes": [{"reason": "FieldValueInvalid", "field": "spec.tier"}]},
}
"""What a kube-apiserver of version 1.36 says, as far as it is read."""


@pytest.mark.parametrize(
    ("status", "body", "error", "says"),
    [
        (422, INVALID, InvalidArgument, "^spec.tier: .*tier cannot be changed"),
        (400, {}, InvalidArgument, "Volume 'vol-a'"),
        (413, {}, InvalidArgument, "Volume 'vol-a'"),
        (401, {}, Unavailable, "credentials"),
        (403, {"message": 'volumes "vol-a" is forbidden'}, Unavailable, 'roles in k8s/: volumes "vol-a"'),
        (404, {}, NotFound, "vol-a"),
        (409, {"reason": "Conflict"}, Conflict, "vol-a"),
        (500, {"message": "etcdserver: no leader"}, Unavailable, "answered 500: etcdserver: no leader"),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
async def test_what_a_refusal_becomes(
    store: KubernetesStore, gate: Gate, status: int, body: dict[str, Any], error: type[QuarryError], says: str
) -> None:
    a = await store.create(volume())
    gate.rules = [Rule("PATCH", times=1, status=status, body=body)]
    with pytest.raises(error, match=says):
        await store.update(resized(a, 2 << 30))
    assert await store.get(Volume, "vol-a") == a
    assert (await store.update(resized(a, 2 << 30))).spec.size_bytes == 2 << 30


async def test_fields_of_a_newer_version(store: KubernetesStore, gate: Gate, plane: Plane) -> None:
    a = await store.create(replace(volume(), spec=replace(volume().spec, attachments=RWX)))
    crd = yaml.safe_load((CRDS / "volumes.yaml").read_text())
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    spec["colour"] = spec["attachments"]["items"]["properties"]["colour"] = {"type": "string"}
    await asyncio.to_thread(plane.serve, json.dumps(crd).encode())
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


async def test_without_resources_or_configuration_it_says_so(gate: Gate, tmp_path: Path) -> None:
    gate.rules = [Rule("GET", "/disks", status=404)]
    with pytest.raises(FailedPrecondition, match="kubectl apply -f k8s/crds"):
        await open_kubernetes(gate.kubeconfig)
    with pytest.raises(FailedPrecondition, match="no usable configuration"):
        await open_kubernetes(tmp_path / "absent")


@pytest.mark.apiserver("tokens to refuse")
async def test_a_token_that_is_refused(plane: Plane, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text(json.dumps(plane.config("nobody")))
    with pytest.raises(Unavailable, match="credentials"):
        await open_kubernetes(other)
