"""What a node agent's token may write, stolen or not: its own node, disks, replicas and Lease; nothing of others."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kube.installation import LEASES, QUARRY, Client, Installation, resource

from .manifest import NAMESPACE, Object

FORBIDDEN = 403


@pytest.fixture(scope="module")
def node(cluster: Installation) -> Client:
    """The agent on node `a`, and so whoever steals its token."""
    return cluster.client("quarry-node", "a")


def _volume(name: str, *nodes: str, **more: Any) -> Object:
    placement = [{"name": f"r{n}", "node": node, "disk": f"disk-{node}"} for n, node in enumerate(nodes)]
    spec = {"csiName": f"pvc-{name}", "sizeBytes": 1 << 30, "tier": "nvme", "placement": placement, **more}
    status = {"phase": "Pending", "replicas": [{"name": each["name"]} for each in placement]}
    return resource("Volume", name, spec, status)


def _disk(name: str, node: str, phase: str = "Ready") -> Object:
    return resource("Disk", name, {"claimed": True}, {"node": node, "phase": phase})


def _lease(name: str) -> Object:
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}, "spec": {}}


EVENTS = "/apis/events.k8s.io/v1/namespaces/default/events"


def _event(kind: str, name: str, reporter: str = "a", **more: Any) -> Object:
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"generateName": "told-", "namespace": "default"},
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "reportingController": "quarry-node",
        "reportingInstance": reporter,
        "action": "Settle",
        "reason": "Told",
        "type": "Normal",
        "regarding": {"apiVersion": "quarry.storage/v1alpha1", "kind": kind, "name": name},
        **more,
    }


def test_tells_events_of_what_is_its_own(cluster: Installation, node: Client) -> None:
    cluster.store(_disk("told-mine", "a"))
    cluster.store(_disk("told-theirs", "b"))
    for kind, name in (
        ("StorageNode", "a"),
        ("Disk", "told-mine"),
        ("Disk", "gone"),
    ):
        made = node("POST", EVENTS, _event(kind, name))
        assert made.code == 201, made.message
        again = {"series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:01.000000Z"}}
        assert node("PATCH", f"{EVENTS}/{made.body['metadata']['name']}", again).code == 200
    other = cluster.client("quarry-node", "b")("POST", EVENTS, _event("StorageNode", "b", "b"))
    assert other.code == 201
    pod = {"regarding": {"apiVersion": "v1", "kind": "Pod", "name": "p", "namespace": "default"}}
    for refused in (
        _event("StorageNode", "b"),
        _event("Disk", "told-theirs"),
        _event("StorageNode", "a", "b"),
        _event("StorageNode", "a", reportingController="kubelet"),
        _event("SnapshotGroup", "g"),
        _event("Disk", "told-mine", **pod),
        _event("Volume", "v"),
        _event("Snapshot", "s"),
    ):
        assert node("POST", EVENTS, refused).code == FORBIDDEN, refused
    again = {"series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:01.000000Z"}}
    assert node("PATCH", f"{EVENTS}/{other.body['metadata']['name']}", again).code == FORBIDDEN


# --- everything that is needed works ---------------------------------------------------------------------------------


def test_reads_all_resources_and_watches_them(node: Client) -> None:
    for plural in ("storagenodes", "disks", "volumes", "snapshots", "snapshotgroups"):
        assert node("GET", f"{QUARRY}/{plural}").code == 200
        assert node("GET", f"{QUARRY}/{plural}/none").code == 404
    assert node("GET", f"{QUARRY}/volumes?watch=true&timeoutSeconds=1").code == 200


def test_writes_its_node_and_its_disks(cluster: Installation, node: Client) -> None:
    cluster.admin("DELETE", f"{QUARRY}/storagenodes/a")
    assert node("POST", f"{QUARRY}/storagenodes", resource("StorageNode", "a")).code == 201
    assert node("PATCH", f"{QUARRY}/storagenodes/a/status", {"status": {"targetState": "Ready"}}).code == 200
    cluster.admin("DELETE", f"{QUARRY}/disks/new")
    assert node("POST", f"{QUARRY}/disks", resource("Disk", "new")).code == 201
    assert node("PATCH", f"{QUARRY}/disks/new/status", {"status": {"node": "a", "phase": "Available"}}).code == 200
    assert node("DELETE", f"{QUARRY}/disks/new").code == 200
    assert node("POST", f"{QUARRY}/disks", resource("Disk", "new")).code == 201
    assert node("PATCH", f"{QUARRY}/disks/new/status", {"status": {"node": "a", "phase": "Available"}}).code == 200
    assert node("PATCH", f"{QUARRY}/disks/new", {"spec": {"claimed": True}}).code == 200
    assert cluster.admin("DELETE", f"{QUARRY}/disks/new").code == 200


def test_a_file_as_a_disk_is_made_claimed(cluster: Installation, node: Client) -> None:
    cluster.admin("DELETE", f"{QUARRY}/disks/file-0123")
    assert node("POST", f"{QUARRY}/disks", resource("Disk", "file-0123", {"claimed": True})).code == 201


def test_takes_a_disk_that_another_node_has_lost(cluster: Installation, node: Client) -> None:
    """A disk carried from node to node keeps its record."""
    cluster.store(_disk("carried", "b", "Missing"))
    assert node("PATCH", f"{QUARRY}/disks/carried/status", {"status": {"node": "a", "phase": "Ready"}}).code == 200
    assert node("PATCH", f"{QUARRY}/disks/carried", {"spec": {"tierOverride": "hdd"}}).code == 200


def test_reports_its_replica(cluster: Installation, node: Client) -> None:
    cluster.store(_volume("mine", "a"))
    status = {"phase": "Ready", "replicas": [{"name": "r0", "ready": True}]}
    assert node("PATCH", f"{QUARRY}/volumes/mine/status", {"status": status}).code == 200


def test_reports_its_replica_of_several(cluster: Installation, node: Client) -> None:
    cluster.store(_volume("both", "a", "b"))
    replicas = [{"name": "r0", "ready": True}, {"name": "r1"}]
    assert node("PATCH", f"{QUARRY}/volumes/both/status", {"status": {"replicas": replicas}}).code == 200


def test_reports_its_snapshots(cluster: Installation, node: Client) -> None:
    cluster.store(resource("Snapshot", "mine", {"csiName": "s", "volume": "v", "node": "a"}))
    assert node("PATCH", f"{QUARRY}/snapshots/mine/status", {"status": {"phase": "Ready"}}).code == 200


def test_beats_its_heart(node: Client) -> None:
    node("POST", LEASES, _lease("quarry-node-a"))
    assert node("GET", f"{LEASES}/quarry-node-a").code == 200
    lease = node("GET", f"{LEASES}/quarry-node-a").body
    assert node("PUT", f"{LEASES}/quarry-node-a", lease).code == 200


def test_reads_its_zone(node: Client) -> None:
    assert node("GET", "/api/v1/nodes/a").code == 200


# --- nothing of another node -----------------------------------------------------------------------------------------


def test_another_node_is_not_touched(cluster: Installation, node: Client) -> None:
    cluster.store(resource("StorageNode", "b", {}, {"targetState": "Ready", "hostNqn": "nqn.b"}))
    answer = node("PATCH", f"{QUARRY}/storagenodes/b/status", {"status": {"hostNqn": "nqn.thief"}})
    assert answer.code == FORBIDDEN and "its own StorageNode" in answer.message
    assert node("POST", f"{QUARRY}/storagenodes", resource("StorageNode", "c")).code == FORBIDDEN


def test_another_nodes_disks_are_not_touched(cluster: Installation, node: Client) -> None:
    cluster.store(_disk("theirs", "b"))
    for path, patch in (
        ("theirs", {"spec": {"claimed": False}}),
        ("theirs/status", {"status": {"phase": "Failed"}}),
        ("theirs/status", {"status": {"node": "a"}}),
    ):
        answer = node("PATCH", f"{QUARRY}/disks/{path}", patch)
        assert answer.code == FORBIDDEN and "another node's" in answer.message, answer.message
    assert node("DELETE", f"{QUARRY}/disks/theirs").code == FORBIDDEN


def test_a_disk_is_not_given_to_another_node(cluster: Installation, node: Client) -> None:
    cluster.store(_disk("given", "a"))
    answer = node("PATCH", f"{QUARRY}/disks/given/status", {"status": {"node": "b"}})
    assert answer.code == FORBIDDEN and "as its own only" in answer.message


def test_a_lost_disk_is_not_released_or_forgotten_for_its_node(cluster: Installation, node: Client) -> None:
    cluster.store(_disk("away", "b", "Missing"))
    assert node("PATCH", f"{QUARRY}/disks/away", {"spec": {"claimed": False}}).code == FORBIDDEN
    assert node("DELETE", f"{QUARRY}/disks/away").code == FORBIDDEN


def test_a_disk_that_was_taken_over_is_not_given_up(cluster: Installation, node: Client) -> None:
    """One that another node misses may be here; whoever says so cannot then give up what lies on it."""
    pool = {"uuid": "8f2c6a52-0000-4000-8000-000000000001"}
    cluster.store(resource("Disk", "taken", {"claimed": True}, {"node": "b", "phase": "Missing", "pool": pool}))
    assert node("PATCH", f"{QUARRY}/disks/taken/status", {"status": {"node": "a", "phase": "Ready"}}).code == 200
    for patch in ({"spec": {"claimed": False}}, {"spec": {"claimed": None}}):
        answer = node("PATCH", f"{QUARRY}/disks/taken", patch)
        assert answer.code == FORBIDDEN and "release" in answer.message, answer.message
    for pool_now in ({"uuid": ""}, {"uuid": "other"}, None):
        answer = node("PATCH", f"{QUARRY}/disks/taken/status", {"status": {"pool": pool_now}})
        assert answer.code == FORBIDDEN and "keeps its pool" in answer.message, answer.message
    answer = node("DELETE", f"{QUARRY}/disks/taken")
    assert answer.code == FORBIDDEN and "gives up" in answer.message
    assert cluster.admin("DELETE", f"{QUARRY}/disks/taken").code == 200


def test_a_disk_that_nobody_has_reported_is_not_claimed_in_advance(node: Client) -> None:
    answer = node("POST", f"{QUARRY}/disks", resource("Disk", "wwn-of-node-b", {"claimed": True}))
    assert answer.code == FORBIDDEN and "claim" in answer.message


def test_attachments_are_the_controllers(cluster: Installation, node: Client) -> None:
    """The fence: also of a volume with a replica here, no node can let itself or another in."""
    cluster.store(_volume("mine", "a"))
    patch = {"spec": {"attachments": [{"node": "a", "hostNqn": "nqn.thief"}]}}
    assert node("PATCH", f"{QUARRY}/volumes/mine", patch).code == FORBIDDEN
    status = node("PATCH", f"{QUARRY}/volumes/mine/status", {**patch, "status": {"message": "hello"}})
    assert status.code == 200 and "attachments" not in status.body["spec"]


def test_volumes_elsewhere_are_not_touched(cluster: Installation, node: Client) -> None:
    cluster.store(_volume("theirs", "b", attachments=[{"node": "a", "hostNqn": "nqn.a"}]))
    answer = node("PATCH", f"{QUARRY}/volumes/theirs/status", {"status": {"phase": "Failed"}})
    assert answer.code == FORBIDDEN and "no replica" in answer.message


def test_another_nodes_replica_is_not_reported(cluster: Installation, node: Client) -> None:
    """Neither changed nor removed nor led elsewhere: its endpoint is where hosts would connect."""
    cluster.store(_volume("both", "a", "b"))
    endpoint = {"nqn": "nqn.x", "address": "192.0.2.1", "port": 4420}
    for replicas in (
        [{"name": "r0"}, {"name": "r1", "ready": True}],
        [{"name": "r0"}, {"name": "r1", "endpoint": endpoint}],
        [{"name": "r0"}],
    ):
        answer = node("PATCH", f"{QUARRY}/volumes/both/status", {"status": {"replicas": replicas}})
        assert answer.code == FORBIDDEN and "that node's to report" in answer.message, answer.message


def test_volumes_are_not_made_or_deleted(cluster: Installation, node: Client) -> None:
    cluster.store(_volume("mine", "a"))
    assert node("POST", f"{QUARRY}/volumes", _volume("more", "a")).code == FORBIDDEN
    assert node("DELETE", f"{QUARRY}/volumes/mine").code == FORBIDDEN
    finalizers = {"metadata": {"finalizers": ["quarry.storage/thief"]}}
    assert node("PATCH", f"{QUARRY}/volumes/mine", finalizers).code == FORBIDDEN


def test_snapshots_elsewhere_and_groups_are_not_touched(cluster: Installation, node: Client) -> None:
    cluster.store(resource("Snapshot", "theirs", {"csiName": "s", "volume": "v", "node": "b"}))
    answer = node("PATCH", f"{QUARRY}/snapshots/theirs/status", {"status": {"phase": "Failed"}})
    assert answer.code == FORBIDDEN and "not on this node" in answer.message
    assert node("PATCH", f"{QUARRY}/snapshotgroups/g/status", {"status": {"phase": "Ready"}}).code == FORBIDDEN


def test_other_leases_are_not_touched(cluster: Installation, node: Client) -> None:
    """Neither another node's heartbeat nor the one that elects the controller."""
    for name in ("quarry-node-b", "quarry-controller", "quarry-node-a-2"):
        cluster.make(LEASES, _lease(name))
        theirs = cluster.admin("GET", f"{LEASES}/{name}").body
        answer = node("PUT", f"{LEASES}/{name}", {**theirs, "spec": {"holderIdentity": "thief"}})
        assert answer.code == FORBIDDEN and "its own Lease" in answer.message
        assert node("POST", LEASES, _lease(f"{name}-x")).code == FORBIDDEN


def test_a_token_that_names_no_node_writes_nothing(cluster: Installation) -> None:
    """As anyone gets who may ask for tokens of the ServiceAccount, without a Pod of it."""
    outsider = Client(cluster.plane, cluster.token("quarry-node"))
    for path, body in (
        (f"{QUARRY}/storagenodes", resource("StorageNode", "a2")),
        (f"{QUARRY}/disks", resource("Disk", "d2")),
        (LEASES, _lease("quarry-node-z")),
    ):
        answer = outsider("POST", path, body)
        assert answer.code == FORBIDDEN and "names no node" in answer.message


def test_nothing_else_of_the_cluster(node: Client) -> None:
    """No Secrets, no Pods, no claims, no tokens, no other Nodes' labels, nothing of the CSI sidecars."""
    for method, path in (
        ("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets"),
        ("GET", "/api/v1/pods"),
        ("GET", "/api/v1/nodes"),
        ("GET", "/api/v1/persistentvolumes"),
        ("GET", "/api/v1/persistentvolumeclaims"),
        ("GET", "/apis/storage.k8s.io/v1/volumeattachments"),
        ("GET", f"{LEASES}"),
        ("DELETE", f"{LEASES}/quarry-node-a"),
        ("DELETE", f"{QUARRY}/storagenodes/a"),
        ("DELETE", f"{QUARRY}/disks"),
    ):
        assert node(method, path).code == FORBIDDEN, (method, path)
    patch = {"metadata": {"labels": {"topology.kubernetes.io/zone": "x"}}}
    assert node("PATCH", "/api/v1/nodes/a", patch).code == FORBIDDEN
    token = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    account = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/quarry-controller"
    assert node("POST", f"{account}/token", token).code == FORBIDDEN
