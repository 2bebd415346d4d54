"""The rendered manifest applied to a real API server, and requests with the tokens that its Pods have."""

from __future__ import annotations

import contextlib
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from tests.k8s.manifest import NAMESPACE, Object, rendered

from . import sidecars
from .control_plane import ADMIN_TOKEN, ControlPlane

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
QUARRY = "/apis/quarry.storage/v1alpha1"
LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"

CONTROLLER = "quarry-controller"
"""The Deployment, and the ServiceAccount of its Pods."""

_SETTLED_S = 20.0
"""A policy takes effect a moment after it was applied."""


@dataclass(frozen=True, slots=True)
class Answer:
    code: int
    body: Any

    @property
    def message(self) -> str:
        return str(self.body.get("message", ""))


def _body(text: bytes) -> Any:
    """JSON; of what is none (a path that is not served, the lines of a watch) the text as a message."""
    try:
        return json.loads(text)
    except ValueError:
        return {"message": text.decode(errors="replace")}


class Client:
    """Requests with one token."""

    def __init__(self, plane: ControlPlane, token: str) -> None:
        self._plane = plane
        self._token = token
        self._context = ssl.create_default_context(cafile=str(plane.ca))

    def __call__(self, method: str, path: str, body: Any = None, content: str = "") -> Answer:
        if not content:
            content = MERGE if method == "PATCH" else "application/json"
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": content}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._plane.url}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, context=self._context, timeout=10) as answer:
                return Answer(answer.status, _body(answer.read()))
        except urllib.error.HTTPError as error:
            return Answer(error.code, _body(error.read()))


class Installation:
    """`nodes` are Nodes that exist, for Pods to be on."""

    def __init__(self, plane: ControlPlane, nodes: Sequence[str] = ("a", "b")) -> None:
        self.plane = plane
        self.nodes = nodes
        self.admin = Client(plane, ADMIN_TOKEN)
        self._plurals: dict[tuple[str, str], tuple[str, bool]] = {}

    # --- installation ----------------------------------------------------------------------------------------------

    def install(self) -> None:
        """The prerequisites, then every object of the rendered manifest, in its order."""
        self._serve_snapshot_classes()
        for each in rendered():
            answer = self.apply(each)
            assert answer.code in (200, 201), f"{each['kind']} {each['metadata']['name']}: {answer.message}"
        for name in self.nodes:
            self.add_node(name)
        self._await_policies()

    def add_node(self, name: str) -> None:
        self.make(f"/api/v1/nodes?name={name}", {"kind": "Node", "apiVersion": "v1", "metadata": {"name": name}})

    def apply(self, document: Object, *, dry: bool = False) -> Answer:
        """Server-side, with a field manager that takes what it finds."""
        query = "?fieldManager=tests&force=true" + ("&dryRun=All&fieldValidation=Strict" if dry else "")
        return self.admin("PATCH", self.path(document) + query, document, APPLY)

    def path(self, document: Object) -> str:
        version, metadata = document["apiVersion"], document["metadata"]
        plural, namespaced = self._resource(version, document["kind"])
        base = f"/apis/{version}" if "/" in version else f"/api/{version}"
        if namespaced:
            base += f"/namespaces/{metadata['namespace']}"
        return f"{base}/{plural}/{metadata['name']}"

    def _resource(self, version: str, kind: str) -> tuple[str, bool]:
        if (version, kind) not in self._plurals:
            base = f"/apis/{version}" if "/" in version else f"/api/{version}"
            for each in self.admin("GET", base).body.get("resources", []):
                if "/" not in each["name"]:
                    self._plurals[version, each["kind"]] = (each["name"], each["namespaced"])
        return self._plurals[version, kind]

    def _serve_snapshot_classes(self) -> None:
        """The snapshot CRDs, which the manifest takes for granted."""
        definitions = [yaml.safe_load(file.read_text()) for file in sidecars.snapshot_definitions()]
        for definition in definitions or [_snapshot_class()]:
            assert self.apply(definition).code in (200, 201)
        deadline = time.monotonic() + _SETTLED_S
        while True:
            with contextlib.suppress(KeyError):
                for definition in definitions or [_snapshot_class()]:
                    self._resource("snapshot.storage.k8s.io/v1", definition["spec"]["names"]["kind"])
                return
            assert time.monotonic() < deadline, "the snapshot resources are not served"
            time.sleep(0.05)

    def _await_policies(self) -> None:
        """Returns when the last of the policies refuses a token that names no node."""
        outsider = Client(self.plane, self.token("quarry-node"))
        lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "quarry-node-z"}}
        disk, node = resource("Disk", "probe"), resource("StorageNode", "probe")
        event = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": "probe", "namespace": "default"},
            "eventTime": "2026-01-01T00:00:00.000000Z",
            "reportingController": "quarry-node",
            "reportingInstance": "z",
            "action": "Settle",
            "reason": "Probe",
            "type": "Normal",
            "regarding": {"apiVersion": "quarry.storage/v1alpha1", "kind": "StorageNode", "name": "z"},
        }
        deadline = time.monotonic() + _SETTLED_S
        while not all(
            "names no node" in outsider("POST", f"{path}?dryRun=All", body).message
            for path, body in (
                (LEASES, lease),
                (f"{QUARRY}/disks", disk),
                (f"{QUARRY}/storagenodes", node),
                ("/apis/events.k8s.io/v1/namespaces/default/events", event),
            )
        ):
            assert time.monotonic() < deadline, "the policies do not take effect"
            time.sleep(0.05)

    # --- who asks --------------------------------------------------------------------------------------------------

    def token(self, account: str, pod: str = "") -> str:
        """Of the TokenRequest API, as kubelet asks for it; bound to `pod` where one is given."""
        spec: dict[str, Any] = {"audiences": []}
        if pod:
            spec["boundObjectRef"] = {"kind": "Pod", "apiVersion": "v1", "name": pod}
        path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{account}/token"
        answer = self.admin(
            "POST", path, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        )
        assert answer.code == 201, answer.message
        return str(answer.body["status"]["token"])

    def client(self, account: str, node: str = "a") -> Client:
        """What a Pod of `account` on `node` may do: with a token that is bound to a Pod there."""
        return Client(self.plane, self.pod(account, node))

    def pod(self, account: str, node: str, name: str = "", owners: Sequence[Object] = ()) -> str:
        """Makes a Pod of `account` on `node`, where it is not there yet; returns a token that is bound to it."""
        name = name or f"{account}-{node}"
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": NAMESPACE, "ownerReferences": list(owners)},
            "spec": {
                "nodeName": node,
                "serviceAccountName": account,
                "containers": [{"name": "agent", "image": "none"}],
            },
        }
        self.make(f"/api/v1/namespaces/{NAMESPACE}/pods", pod)
        return self.token(account, name)

    def replica_set(self) -> Object:
        """One of the controller's Deployment, made as Kubernetes would; returns it as owner of its Pods."""
        path = f"/apis/apps/v1/namespaces/{NAMESPACE}"
        deployment = self.admin("GET", f"{path}/deployments/{CONTROLLER}").body
        owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": CONTROLLER, "controller": True}
        owner["uid"] = deployment["metadata"]["uid"]
        template = deployment["spec"]["template"]
        made = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {"name": f"{CONTROLLER}-1", "ownerReferences": [owner]},
            "spec": {"replicas": 0, "selector": deployment["spec"]["selector"], "template": template},
        }
        self.make(f"{path}/replicasets", made)
        uid = self.admin("GET", f"{path}/replicasets/{CONTROLLER}-1").body["metadata"]["uid"]
        return {**owner, "kind": "ReplicaSet", "name": f"{CONTROLLER}-1", "uid": uid}

    # --- objects ---------------------------------------------------------------------------------------------------

    def make(self, path: str, document: Object) -> None:
        """As an administrator; present already is as well."""
        answer = self.admin("POST", path.partition("?")[0], document)
        assert answer.code in (201, 409), answer.message

    def store(self, document: Object) -> Object:
        """A custom resource with its status, as an administrator, in place of a former one of that name."""
        path = f"{QUARRY}/{document['kind'].lower()}s"
        name, status = document["metadata"]["name"], document.get("status")
        self.admin("PATCH", f"{path}/{name}", {"metadata": {"finalizers": None}})
        self.admin("DELETE", f"{path}/{name}")
        made = self.admin("POST", path, document)
        assert made.code == 201, made.message
        if status is not None:
            made = self.admin("PATCH", f"{path}/{name}/status", {"status": status})
            assert made.code == 200, made.message
        return dict(made.body)


def resource(kind: str, name: str, spec: Object | None = None, status: Object | None = None) -> Object:
    """A custom resource of ours."""
    document: Object = {"apiVersion": "quarry.storage/v1alpha1", "kind": kind, "metadata": {"name": name}}
    document["spec"] = spec or {}
    if status is not None:
        document["status"] = status
    return document


def _snapshot_class() -> Object:
    """Stands for the snapshot CRDs where they are not here: a kind without its schema."""
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": anything}}
    names = {"kind": "VolumeSnapshotClass", "plural": "volumesnapshotclasses"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": "volumesnapshotclasses.snapshot.storage.k8s.io",
            "annotations": {"api-approved.kubernetes.io": "unapproved, for tests"},
        },
        "spec": {"group": "snapshot.storage.k8s.io", "scope": "Cluster", "names": names, "versions": [version]},
    }
