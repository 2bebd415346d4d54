"""Claims, attachments, snapshots: what users ask for, and what scheduler, kubelet and attach controller do.

PersistentVolumes are bound by the real kube-controller-manager, else by binder.py.
"""

from __future__ import annotations

import asyncio
import http.client
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from agent.csi.client import CsiClient
from agent.nvmf import initiator
from tests.k8s.manifest import NAMESPACE, Object

from .cluster import NODES
from .installation import Answer, Installation
from .installed import InstalledCluster

DRIVER = "csi.quarry.storage"
BINDING = (
    "persistentvolume-binder-controller",
    "persistentvolumeclaim-protection-controller",
    "persistentvolume-protection-controller",
)
"""Of kube-controller-manager."""

SELECTED = "volume.kubernetes.io/selected-node"
PATIENCE_S = 90.0

VOLUMES = "/api/v1/persistentvolumes"
CLAIMS = "/api/v1/namespaces/default/persistentvolumeclaims"
ATTACHMENTS = "/apis/storage.k8s.io/v1/volumeattachments"
CAPACITIES = f"/apis/storage.k8s.io/v1/namespaces/{NAMESPACE}/csistoragecapacities"
SNAPSHOTS = "/apis/snapshot.storage.k8s.io/v1/namespaces/default/volumesnapshots"
CONTENTS = "/apis/snapshot.storage.k8s.io/v1/volumesnapshotcontents"


class Claims:
    """Every wait raises AssertionError with what was there instead, and the ends of all logs."""

    def __init__(self, cluster: InstalledCluster, installation: Installation) -> None:
        self._cluster = cluster
        self._admin = installation.admin
        self._selected: dict[str, str] = {}

    # --- the API ---

    async def _ask(self, method: str, path: str, body: Object | None = None) -> Answer:
        """Asks again while the API is away. A repeated creation that finds the object has made it."""
        deadline, repeated = time.monotonic() + PATIENCE_S, False
        while True:
            try:
                answer = await asyncio.to_thread(self._admin, method, path, body)
                if answer.code < 500 and answer.code != 429:
                    return Answer(201, answer.body) if repeated and answer.code == 409 else answer
                trouble = answer.message
            except (OSError, http.client.HTTPException) as error:
                trouble = str(error)
            assert time.monotonic() < deadline, f"{method} {path}: {trouble}"
            repeated = method == "POST"
            await asyncio.sleep(0.5)

    async def get(self, path: str) -> Object | None:
        answer = await self._ask("GET", path)
        if answer.code == 404:
            return None
        assert answer.code == 200, answer.message
        return dict(answer.body)

    async def list(self, path: str) -> list[Object]:
        return list((await self.get(path) or {}).get("items", []))

    async def make(self, path: str, document: Object) -> None:
        answer = await self._ask("POST", path, document)
        assert answer.code == 201, answer.message

    async def patch(self, path: str, change: Object) -> None:
        answer = await self._ask("PATCH", path, change)
        assert answer.code == 200, answer.message

    async def delete(self, path: str) -> None:
        answer = await self._ask("DELETE", path)
        assert answer.code in (200, 202, 404), answer.message

    async def until(self, path: str, holds: Callable[[Object], object]) -> Object:
        """Waits until the object at `path` is there and `holds`; returns it."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found = await self.get(path)
            if found is not None and holds(found):
                return found
            assert time.monotonic() < deadline, f"{path}: {found}\n{self._cluster.logs()}"
            await asyncio.sleep(0.1)

    async def gone(self, path: str) -> None:
        """Waits until nothing is at `path`; of a list, until it is empty."""
        deadline = time.monotonic() + PATIENCE_S
        while (found := await self.get(path)) is not None and found.get("items", [found]):
            assert time.monotonic() < deadline, f"{path} is left: {found}\n{self._cluster.logs()}"
            await asyncio.sleep(0.1)

    # --- kubelet ---

    async def register(self, node: str) -> None:
        """The driver on `node`, as kubelet registers it: by what NodeGetInfo answers."""
        async with CsiClient(self._cluster.socket(node)) as csi:
            info = await csi.node_info()
        segments = dict(info.accessible_topology.segments)
        await self.patch(f"/api/v1/nodes/{node}", {"metadata": {"labels": segments}})
        driver = {"name": DRIVER, "nodeID": info.node_id, "topologyKeys": sorted(segments)}
        document: Object = {"apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": {"name": node}}
        await self.delete(f"/apis/storage.k8s.io/v1/csinodes/{node}")
        await self.make("/apis/storage.k8s.io/v1/csinodes", {**document, "spec": {"drivers": [driver]}})

    # --- claims ---

    async def claim(self, name: str, size: str, node: str, *, source: Object | None = None, **spec: Any) -> None:
        """A claim of a raw block volume for a Pod that the scheduler has put on `node`."""
        document: Object = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}}
        document["metadata"]["annotations"] = {SELECTED: node}
        self._selected[name] = node
        document["spec"] = {
            "accessModes": ["ReadWriteOnce"],
            "volumeMode": "Block",
            "storageClassName": "quarry-nvme",
            "resources": {"requests": {"storage": size}},
            **({"dataSource": source} if source else {}),
            **spec,
        }
        await self.make(CLAIMS, document)

    async def bound(self, name: str) -> Object:
        """The PersistentVolume of the claim, when it is bound."""

        def is_bound_or_rejected(claim: Object) -> bool:
            rejected = SELECTED not in claim["metadata"].get("annotations", {})
            return rejected or claim["status"].get("phase") == "Bound"

        while True:
            claim = await self.until(f"{CLAIMS}/{name}", is_bound_or_rejected)
            if claim["status"].get("phase") == "Bound":
                break
            # The provisioner asks the scheduler for another node; it is a small cluster.
            await self.patch(f"{CLAIMS}/{name}", {"metadata": {"annotations": {SELECTED: self._selected[name]}}})
        return await self.until(f"{VOLUMES}/{claim['spec']['volumeName']}", lambda it: True)

    @asynccontextmanager
    async def attached(self, volume: Object, node: str) -> AsyncIterator[initiator.Controller]:
        """The PersistentVolume attached to `node` and connected over NVMe/TCP; detached afterwards."""
        metadata = await self.attach(volume, node)
        host = await initiator.connect(metadata["address"], int(metadata["port"]), metadata["nqn"], metadata["hostNqn"])
        try:
            yield host
        finally:
            await host.close()
            await self.detach(volume, node)

    async def attach(self, volume: Object, node: str) -> Mapping[str, str]:
        """As the attach-detach controller asks for it; returns what kubelet is told."""
        name = volume["metadata"]["name"]
        document: Object = {"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment"}
        document["metadata"] = {"name": f"{name}-{node}"}
        document["spec"] = {"attacher": DRIVER, "nodeName": node, "source": {"persistentVolumeName": name}}
        await self.make(ATTACHMENTS, document)
        made = await self.until(f"{ATTACHMENTS}/{name}-{node}", lambda it: (it.get("status") or {}).get("attached"))
        return dict(made["status"]["attachmentMetadata"])

    async def detach(self, volume: Object, node: str) -> None:
        path = f"{ATTACHMENTS}/{volume['metadata']['name']}-{node}"
        await self.delete(path)
        await self.gone(path)

    # --- snapshots ---

    async def snapshot(self, name: str, claim: str) -> Object:
        """A VolumeSnapshot, when it can be used; as source of a claim."""
        document: Object = {"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot"}
        document["metadata"] = {"name": name}
        source = {"persistentVolumeClaimName": claim}
        document["spec"] = {"volumeSnapshotClassName": "quarry", "source": source}
        await self.make(SNAPSHOTS, document)
        await self.until(f"{SNAPSHOTS}/{name}", lambda it: (it.get("status") or {}).get("readyToUse"))
        return {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": name}

    # --- the end ---

    async def clear(self) -> None:
        """Deletes what a test has left that failed, whatever holds it."""
        for path in (ATTACHMENTS, CLAIMS, VOLUMES, SNAPSHOTS, CONTENTS):
            for each in await self.list(path):
                name = f"{path}/{each['metadata']['name']}"
                await self._ask("PATCH", name, {"metadata": {"finalizers": None}})
                await self.delete(name)

    async def objects_gone(self) -> None:
        """Waits until no object is left, here and of ours."""
        quarry = [f"/apis/quarry.storage/v1alpha1/{kind}" for kind in ("volumes", "snapshots")]
        for path in (ATTACHMENTS, CLAIMS, VOLUMES, SNAPSHOTS, CONTENTS, *quarry):
            await self.gone(path)

    async def all_gone(self) -> None:
        """Waits until no object is left, and nothing in the targets."""
        await self.objects_gone()
        deadline = time.monotonic() + PATIENCE_S
        nothing: dict[str, set[str]] = {node: set() for node in NODES}
        while (left := (await self._cluster.lvols(), await self._cluster.exports())) != (nothing, nothing):
            assert time.monotonic() < deadline, f"left in the targets: {left}"
            await asyncio.sleep(0.1)
