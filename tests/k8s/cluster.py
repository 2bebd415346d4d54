"""Applies manifests to a real API server, and asks it with the tokens that Pods of a cluster have."""

from __future__ import annotations

import contextlib
import json
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from tests.kube.control_plane import ADMIN_TOKEN, ControlPlane

from .manifest import NAMESPACE, Object, rendered

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
QUARRY = "/apis/quarry.storage/v1alpha1"
LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"

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


class Cluster:
    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.admin = Client(plane, ADMIN_TOKEN)
        self._plurals: dict[tuple[str, str], tuple[str, bool]] = {}

    # --- installation ----------------------------------------------------------------------------------------------

    def install(self) -> None:
        """The prerequisites, then every object of the rendered manifest, in its order."""
        self._serve_snapshot_classes()
        for each in rendered():
            answer = self.apply(each)
            assert answer.code in (200, 201), f"{each['kind']} {each['metadata']['name']}: {answer.message}"
        for name in ("a", "b"):
            self.make(f"/api/v1/nodes?name={name}", {"kind": "Node", "apiVersion": "v1", "metadata": {"name": name}})
        self._await_policies()

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
        """Stands for the snapshot CRDs, which the manifest takes for granted: the kind, without its schema."""
        anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": anything}}
        names = {"kind": "VolumeSnapshotClass", "plural": "volumesnapshotclasses"}
        definition = {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {
                "name": "volumesnapshotclasses.snapshot.storage.k8s.io",
                "annotations": {"api-approved.kubernetes.io": "unapproved, for tests"},
            },
            "spec": {"group": "snapshot.storage.k8s.io", "scope": "Cluster", "names": names, "versions": [version]},
        }
        assert self.apply(definition).code in (200, 201)
        deadline = time.monotonic() + _SETTLED_S
        while True:
            with contextlib.suppress(KeyError):
                self._resource("snapshot.storage.k8s.io/v1", "VolumeSnapshotClass")
                return
            assert time.monotonic() < deadline, "the snapshot class is not served"
            time.sleep(0.05)

    def _await_policies(self) -> None:
        """Returns when the last of the policies refuses a token that names no node."""
        outsider = Client(self.plane, self.token("quarry-node"))
        lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "quarry-node-z"}}
        disk, node = resource("Disk", "probe"), resource("StorageNode", "probe")
        deadline = time.monotonic() + _SETTLED_S
        while not all(
            "names no node" in outsider("POST", f"{path}?dryRun=All", body).message
            for path, body in ((LEASES, lease), (f"{QUARRY}/disks", disk), (f"{QUARRY}/storagenodes", node))
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
        name = f"{account}-{node}"
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "nodeName": node,
                "serviceAccountName": account,
                "containers": [{"name": "agent", "image": "none"}],
            },
        }
        self.make(f"/api/v1/namespaces/{NAMESPACE}/pods", pod)
        return Client(self.plane, self.token(account, name))

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
