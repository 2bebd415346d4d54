"""What the token of the controller's Pod may do: what it and each sidecar beside it need, and not what a node does."""

from __future__ import annotations

import pytest

from tests.kube.installation import LEASES, QUARRY, Client, Installation, resource

from .manifest import NAMESPACE, Object

FORBIDDEN = 403


@pytest.fixture(scope="module")
def controller(cluster: Installation) -> Client:
    return cluster.client("quarry-controller", "a")


def test_reads_all_resources(controller: Client) -> None:
    for plural in ("storagenodes", "disks", "volumes", "snapshots", "snapshotgroups"):
        assert controller("GET", f"{QUARRY}/{plural}").code == 200
        assert controller("GET", f"{QUARRY}/{plural}/none").code == 404


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("Volume", {"csiName": "pvc", "sizeBytes": 1, "tier": "ssd"}),
        ("Snapshot", {"csiName": "s", "volume": "v"}),
    ],
)
def test_keeps_volumes_and_snapshots(controller: Client, kind: str, spec: Object) -> None:
    """Made with a finalizer, reported on, let go of and deleted."""
    path = f"{QUARRY}/{kind.lower()}s"
    document = resource(kind, "kept", spec)
    document["metadata"]["finalizers"] = ["quarry.storage/data"]
    assert controller("POST", path, document).code == 201
    assert controller("PATCH", f"{path}/kept", {"metadata": {"labels": {"a": "b"}}}).code == 200
    assert controller("PATCH", f"{path}/kept/status", {"status": {"phase": "Ready"}}).code == 200
    assert controller("DELETE", f"{path}/kept").code == 200
    assert controller("PATCH", f"{path}/kept", {"metadata": {"finalizers": None}}).code == 200
    assert controller("GET", f"{path}/kept").code == 404


def test_leads_by_a_lease_and_sees_heartbeats(cluster: Installation, controller: Client) -> None:
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "quarry-controller"}}
    assert controller("POST", LEASES, lease).code in (201, 409)
    held = controller("GET", f"{LEASES}/quarry-controller").body
    assert controller("PUT", f"{LEASES}/quarry-controller", held).code == 200
    cluster.make(LEASES, {**lease, "metadata": {"name": "quarry-node-b"}})
    assert controller("GET", f"{LEASES}/quarry-node-b").code == 200
    assert controller("GET", LEASES).code == 200


def test_does_nothing_that_is_a_nodes(cluster: Installation, controller: Client) -> None:
    """Disks and nodes tell of themselves; a controller that errs cannot claim a disk or fake a heartbeat."""
    cluster.store(resource("Disk", "theirs", {}, {"node": "a"}))
    cluster.store(resource("StorageNode", "b", {}, {}))
    cluster.make(
        LEASES, {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "quarry-node-b"}}
    )
    for path, patch in (
        (f"{QUARRY}/disks/theirs", {"spec": {"claimed": True}}),
        (f"{QUARRY}/disks/theirs/status", {"status": {"phase": "Ready"}}),
        (f"{QUARRY}/storagenodes/b", {"spec": {"cordoned": True}}),
        (f"{QUARRY}/storagenodes/b/status", {"status": {"targetState": "Ready"}}),
    ):
        assert controller("PATCH", path, patch).code == FORBIDDEN, path
    lease = controller("GET", f"{LEASES}/quarry-node-b").body
    assert controller("PUT", f"{LEASES}/quarry-node-b", lease).code == FORBIDDEN
    assert controller("DELETE", f"{LEASES}/quarry-controller").code == FORBIDDEN
    assert controller("POST", f"{QUARRY}/disks", resource("Disk", "new")).code == FORBIDDEN
    assert controller("DELETE", f"{QUARRY}/disks/theirs").code == FORBIDDEN


def test_tells_of_dead_nodes_and_nothing_else_of_them(cluster: Installation, controller: Client) -> None:
    """By conditions, and a target state that claims nothing. What is left of a forgotten node it takes away."""
    cluster.store(resource("Disk", "dead-disk", {}, {"node": "c", "phase": "Ready"}))
    cluster.store(resource("StorageNode", "c", {}, {"hostNqn": "nqn.c", "targetState": "Ready"}))
    cluster.make(
        LEASES, {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "quarry-node-c"}}
    )
    told = {"conditions": [{"type": "Alive", "status": "False"}]}
    assert controller("PATCH", f"{QUARRY}/disks/dead-disk/status", {"status": told}).code == 200
    node = f"{QUARRY}/storagenodes/c/status"
    assert controller("PATCH", node, {"status": told | {"targetState": "Unknown"}}).code == 200
    for status in ({"targetState": "Ready"}, {"hostNqn": "nqn.other"}, {"hostNqn": None}, {"addresses": ["1.2.3.4"]}):
        assert controller("PATCH", node, {"status": told | status}).code == FORBIDDEN, status
    assert controller("DELETE", f"{LEASES}/quarry-node-c").code == 200


CORE, STORAGE, SNAPSHOT = "", "storage.k8s.io", "snapshot.storage.k8s.io"

SIDECARS = {
    "provisioner": [
        (CORE, "persistentvolumes", "get list watch create patch delete"),
        (CORE, "persistentvolumeclaims", "get list watch update"),
        (STORAGE, "storageclasses", "get list watch"),
        (STORAGE, "csinodes", "get list watch"),
        (STORAGE, "volumeattributesclasses", "get"),
        (STORAGE, "csistoragecapacities", "get list watch create update patch delete"),
        (CORE, "nodes", "get list watch"),
        (CORE, "events", "list watch create update patch"),
        (CORE, "pods", "get"),
        ("apps", "replicasets", "get"),
        (SNAPSHOT, "volumesnapshots", "get list watch update"),
        (SNAPSHOT, "volumesnapshotcontents", "get list"),
    ],
    "attacher": [
        (CORE, "persistentvolumes", "get list watch patch"),
        (STORAGE, "volumeattachments", "get list watch patch"),
        (STORAGE, "volumeattachments/status", "patch"),
    ],
    "resizer": [
        (CORE, "persistentvolumeclaims/status", "patch"),
        (CORE, "pods", "get list watch"),
        (STORAGE, "volumeattributesclasses", "get list watch"),
    ],
    "snapshotter": [
        (SNAPSHOT, "volumesnapshotclasses", "get list watch"),
        (SNAPSHOT, "volumesnapshotcontents", "get list watch update patch"),
        (SNAPSHOT, "volumesnapshotcontents/status", "update patch"),
    ],
}
"""What the sidecars' own rbac.yaml asks for, without what is optional and not used here."""


def _may(client: Client, group: str, plural: str, verb: str, namespace: str) -> bool:
    """The API server's own word, as `kubectl auth can-i` asks for it."""
    name, _, part = plural.partition("/")
    attributes = {"group": group, "resource": name, "subresource": part, "verb": verb, "namespace": namespace}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    answer = client("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
    assert answer.code == 201, answer.message
    return bool(answer.body["status"]["allowed"])


@pytest.mark.parametrize("sidecar", SIDECARS)
def test_sidecars_may_do_what_they_need(controller: Client, sidecar: str) -> None:
    lacking = [
        f"{verb} {group}/{plural}"
        for group, plural, verbs in SIDECARS[sidecar]
        for verb in verbs.split()
        if not _may(controller, group, plural, verb, NAMESPACE)
    ]
    assert not lacking


def test_nothing_else_of_the_cluster(controller: Client) -> None:
    for group, plural, verb in (
        (CORE, "secrets", "get"),
        (CORE, "pods", "create"),
        (CORE, "pods/exec", "create"),
        (CORE, "nodes", "patch"),
        (CORE, "persistentvolumeclaims", "delete"),
        (CORE, "serviceaccounts/token", "create"),
        (STORAGE, "volumeattachments", "delete"),
        (STORAGE, "storageclasses", "create"),
        ("apps", "daemonsets", "patch"),
        ("rbac.authorization.k8s.io", "clusterroles", "escalate"),
        ("apiextensions.k8s.io", "customresourcedefinitions", "patch"),
    ):
        assert not _may(controller, group, plural, verb, NAMESPACE), f"{verb} {group}/{plural}"


def test_the_targets_account_may_nothing(cluster: Installation) -> None:
    target = cluster.client("quarry-target", "a")
    for plural in ("storagenodes", "disks", "volumes"):
        assert target("GET", f"{QUARRY}/{plural}").code == FORBIDDEN
