"""The floor of a cluster: the writes of a volume's life on the same API server, with nobody who reacts to them.

The objects are Volumes by the same schema and rules, under a group of their own that nothing watches.
"""

from __future__ import annotations

import json
import ssl
import time
import urllib.error
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import yaml

from agent.model import Attachment, Endpoint, Meta, Replica, ReplicaStatus, Tier, Volume, VolumePhase, VolumeSpec
from agent.model import VolumeStatus as Status
from agent.store.kubernetes import wire
from tests.bench.agent import pooled
from tests.kube.control_plane import ADMIN_TOKEN, CRDS, ControlPlane

GROUP = "bench.quarry.storage"
_PATH = f"/apis/{GROUP}/v1alpha1/volumes"
_SERVED_S = 30.0
_MERGE = "application/merge-patch+json"
_NQN = "nqn.2014-08.org.nvmexpress:uuid:7d6c1a3e-0000-4000-8000-000000000001"
_UUID = "7d6c1a3e-0000-4000-8000-000000000002"


@dataclass(frozen=True)
class Write:
    method: str
    part: str
    body: bytes
    content: str = _MERGE


def install(plane: ControlPlane) -> None:
    """The custom resource of the floor."""
    crd = yaml.safe_load((CRDS / "volumes.yaml").read_text())
    crd["metadata"]["name"] = f"volumes.{GROUP}"
    crd["spec"]["group"] = GROUP
    for key in ("shortNames", "categories"):
        crd["spec"]["names"].pop(key, None)
    name = crd["metadata"]["name"]
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}?fieldManager=tests&force=true"
    plane.request("PATCH", path, json.dumps(crd).encode(), "application/apply-patch+yaml")
    deadline = time.monotonic() + _SERVED_S
    while True:
        try:
            plane.request("GET", _PATH)
            return
        except urllib.error.HTTPError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def life(name: str) -> list[Write]:
    """What has to be written for one volume, whoever writes it: each wish, and each time what came of it."""
    spec = VolumeSpec(
        csi_name=name, size_bytes=4 << 20, tier=Tier.NVME, placement=(Replica("r0", "node-a", "file-0123456789abcdef"),)
    )
    endpoint = Endpoint(f"nqn.2026-11.storage.quarry:{name}", "127.0.0.1", 4420)
    made = Status(VolumePhase.READY, 4 << 20, (ReplicaStatus("r0", True, _UUID, endpoint),), observed=1)
    volume = Volume(Meta(name), spec, made)
    created = {**wire.new_object(volume), "apiVersion": f"{GROUP}/v1alpha1"}
    attachment = wire.part(Volume(Meta(name), _with(spec, (Attachment("node-a", _NQN),)), made), "spec")["attachments"]
    status = wire.part(volume, "status")
    gone = {"phase": VolumePhase.DELETING.value, "replicas": None, "observed": 4}
    return [
        Write("POST", "", _json(created), "application/json"),
        _patch(name, {"status": status}, "/status"),
        _patch(name, {"spec": {"attachments": attachment}, "metadata": {"managedFields": [{}]}}),  # decision 0009
        _patch(name, {"status": {"observed": 2}}, "/status"),
        _patch(name, {"spec": {"attachments": None}}),
        _patch(name, {"status": {"observed": 3}}, "/status"),
        Write("DELETE", f"/{name}", b"", "application/json"),
        _patch(name, {"status": gone}, "/status"),
        _patch(name, {"metadata": {"finalizers": None}}),
    ]


async def lives(plane: ControlPlane, names: list[str], callers: int) -> float:
    """Seconds for the writes of whole lives, each life's one after the other, `callers` lives at a time."""
    tls = ssl.create_default_context(cafile=str(plane.ca))
    writes = {name: life(name) for name in names}
    connector = aiohttp.TCPConnector(limit=0, ssl=tls)
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}", "Accept": "application/json"}
    async with aiohttp.ClientSession(plane.url, connector=connector, headers=headers) as session:

        async def one(name: str) -> None:
            for write in writes[name]:
                await _send(session, write)

        return await pooled(names, callers, one)


async def _send(session: aiohttp.ClientSession, write: Write) -> None:
    headers = {"Content-Type": write.content}
    async with session.request(write.method, f"{_PATH}{write.part}", data=write.body, headers=headers) as answer:
        text = await answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{write.method} {write.part}: {answer.status} {text[:300]!r}")


def _with(spec: VolumeSpec, attachments: tuple[Attachment, ...]) -> VolumeSpec:
    return VolumeSpec(spec.csi_name, spec.size_bytes, spec.tier, placement=spec.placement, attachments=attachments)


def _patch(name: str, body: Mapping[str, Any], subresource: str = "") -> Write:
    return Write("PATCH", f"/{name}{subresource}", _json(body))


def _json(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body).encode()
