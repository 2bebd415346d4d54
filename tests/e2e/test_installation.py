"""The manifest's Pods on a real node: they start, serve a StatefulSet, outlive an upgrade, and leave nothing.

The tests of an installation build on each other, in this order. On a kernel without NVMe/TCP volumes of a real target
are made, attached and deleted, but not mounted. There all is repeated with the embedded target (frontend `loop`).
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.cluster import QUARRY, Cluster, documents, mounts, processes
from tests.e2e.conftest import OUTSIDE, RUN, Installed, reason
from tests.e2e.daemons import NODE
from tests.e2e.installation import NAMESPACE, SPDK
from tests.e2e.machine import loops
from tests.e2e.progress import say

if OUTSIDE:
    pytest.skip(reason(), allow_module_level=True)

DATA_MIB = 64
COMPONENTS = ("target", "node", "controller")
CLAIM = "/api/v1/namespaces/default/persistentvolumeclaims"


def is_ready(pod: dict[str, Any]) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", []))


def run_in_app(cluster: Cluster, script: str) -> str:
    return cluster.kubectl("exec", "app-0", "--", "sh", "-ec", script).strip()


def await_app(cluster: Cluster, other_than: str = "") -> dict[str, Any]:
    """Its Pod, running; another one than that of this uid."""

    def found() -> dict[str, Any] | None:
        pod = cluster.pod("app-0")
        return pod if pod and pod["metadata"]["uid"] != other_than and is_ready(pod) else None

    cluster.wait(found, "the application's Pod is not ready")
    return found() or {}


def needs_frontend(cluster: Cluster, installed: Installed) -> None:
    """Skips where volumes cannot be mounted, once the Pod has been told why."""
    if not installed.flavour.frontend:
        path = "/api/v1/namespaces/default/events?fieldSelector=reason=FailedMount"
        cluster.wait(
            lambda: any("no NVMe/TCP" in each["message"] for each in cluster.items(path)), "the Pod is not told why"
        )
        pytest.skip("this kernel has no NVMe/TCP (modprobe nvme-tcp): volumes of nvmf_tgt cannot be mounted here")


def test_every_pod_is_ready(cluster: Cluster, installed: Installed) -> None:
    for component in COMPONENTS:
        cluster.wait(
            lambda component=component: (found := cluster.pods(component)) and all(map(is_ready, found)),
            f"Pods of {component} are not ready",
            240,
        )
        say(f"ready: {', '.join(each['metadata']['name'] for each in cluster.pods(component))}")
    assert [len(cluster.pods(component)) for component in COMPONENTS] == [1, 1, 2]


def test_the_doctor_let_the_agent_start(cluster: Cluster, installed: Installed) -> None:
    (pod,) = cluster.pods("node")
    ended = cluster.container(pod, "doctor")["state"]["terminated"]
    log = cluster.log(pod["metadata"]["name"], "doctor")
    say("quarry doctor: " + log.strip().splitlines()[-1])
    assert ended["exitCode"] == 0, log
    assert " 0 fail" in log or ", 0 fail" in log, log


def test_the_node_is_known_with_its_target(cluster: Cluster, installed: Installed) -> None:
    version = cluster.target("spdk_get_version")["version"]

    def is_told() -> bool:
        status: dict[str, Any] = cluster.plane.request("GET", f"{QUARRY}/storagenodes/{NODE}")["status"]
        return status.get("targetState") == "Ready" and status.get("targetVersion") == version

    cluster.wait(is_told, f"the StorageNode does not tell of the target, {version}")
    csi_node = f"/apis/storage.k8s.io/v1/csinodes/{NODE}"

    def drivers() -> list[str]:
        return [each["name"] for each in cluster.plane.request("GET", csi_node)["spec"]["drivers"] or ()]

    cluster.wait(lambda: drivers() == ["csi.quarry.storage"], "kubelet does not know the driver")
    assert ("quarry" not in version) == (installed.flavour.name == SPDK), version


def test_a_claim_is_bound_and_attached(cluster: Cluster, installed: Installed) -> None:
    cluster.apply([yaml.safe_load((Path(__file__).parent / "app.yaml").read_text())])
    # Before the scheduler is told of the node's room, which is asked for every 10 s, it finds no place for the Pod.
    cluster.wait(
        lambda: [each["status"]["phase"] for each in cluster.items(CLAIM)] == ["Bound"], "the claim is not Bound", 40
    )
    attachments = "/apis/storage.k8s.io/v1/volumeattachments"
    say("claim Bound")
    cluster.wait(lambda: [each["status"]["attached"] for each in cluster.items(attachments)] == [True], "not attached")
    say("volume attached")
    (volume,) = cluster.items(f"{QUARRY}/volumes")
    assert [name for name in cluster.lvols() if volume["metadata"]["name"] in name]


def test_what_the_application_writes_is_read_by_its_next_pod(cluster: Cluster, installed: Installed) -> None:
    needs_frontend(cluster, installed)
    first = await_app(cluster)
    say("application running")
    written = run_in_app(
        cluster,
        f"dd if=/dev/urandom of=/data/file bs=1M count={DATA_MIB} conv=fsync status=none; sha256sum </data/file",
    )
    cluster.kubectl("delete", "pod", "app-0")
    second = await_app(cluster, other_than=first["metadata"]["uid"])
    assert run_in_app(cluster, "sha256sum </data/file") == written
    say(f"{DATA_MIB} MiB written by {first['metadata']['uid']}, read by {second['metadata']['uid']}")


def test_an_upgrade_of_the_agent_restarts_neither_target_nor_application(
    cluster: Cluster, installed: Installed
) -> None:
    (target,), (agent,) = cluster.pods("target"), cluster.pods("node")
    app = cluster.pod("app-0") or {}
    if installed.flavour.frontend:
        run_in_app(cluster, "(while :; do date +%s.%N >>/data/ticks; sleep 0.2; done) >/dev/null 2>&1 &")
    lvols = cluster.lvols()
    cluster.kubectl("delete", "pod", "-n", NAMESPACE, agent["metadata"]["name"])
    cluster.wait(
        lambda: (
            (found := cluster.pods("node"))
            and found[0]["metadata"]["uid"] != agent["metadata"]["uid"]
            and is_ready(found[0])
        ),
        "the next agent is not ready",
    )
    (same,) = cluster.pods("target")
    before, after = cluster.container(target, "spdk-tgt"), cluster.container(same, "spdk-tgt")
    assert after["containerID"] == before["containerID"]
    assert after["state"]["running"]["startedAt"] == before["state"]["running"]["startedAt"]
    assert cluster.lvols() == lvols
    if not installed.flavour.frontend:
        return
    still = cluster.pod("app-0") or {}
    assert cluster.container(still, "app")["containerID"] == cluster.container(app, "app")["containerID"]
    ticks = [float(each) for each in run_in_app(cluster, "cat /data/ticks").split()]
    longest = max(later - sooner for sooner, later in pairwise(ticks))
    say(f"agent replaced; the application wrote {len(ticks)} times meanwhile, the longest pause was {longest:.1f} s")
    assert longest < 3


def test_a_deleted_claim_leaves_nothing(cluster: Cluster, installed: Installed) -> None:
    (volume,) = cluster.items(f"{QUARRY}/volumes")
    cluster.kubectl("delete", "statefulset", "app", "--wait")
    cluster.kubectl("delete", "pvc", "--all", "--wait=false")
    for path, what in (
        (CLAIM, "the claim"),
        ("/api/v1/persistentvolumes", "the PersistentVolume"),
        (f"{QUARRY}/volumes", "the Volume"),
        ("/apis/storage.k8s.io/v1/volumeattachments", "the attachment"),
    ):
        cluster.wait(lambda path=path: not cluster.items(path), f"{what} is still there")
    cluster.wait(
        lambda: not [name for name in cluster.lvols() if volume["metadata"]["name"] in name], "the lvol is still there"
    )
    assert loops(RUN) == []


def test_uninstalled_in_the_documented_order_nothing_is_left(cluster: Cluster, installed: Installed) -> None:
    definitions = [each for each in installed.objects if each["kind"] == "CustomResourceDefinition"]
    others = [each for each in installed.objects if each["kind"] != "CustomResourceDefinition"]
    with pytest.raises(RuntimeError, match=r"quarry\.storage/allow-deletion"):
        cluster.kubectl("delete", "-f", "-", "--timeout=120s", stdin=documents(installed.objects))
    assert cluster.items(f"{QUARRY}/storagenodes")
    names = [each["metadata"]["name"] for each in definitions]
    cluster.kubectl("annotate", "crd", *names, "quarry.storage/allow-deletion=true")
    cluster.kubectl("delete", "crd", *names, "--timeout=60s")
    cluster.wait(lambda: not processes(["nvmf_tgt", "quarry", "csi-provisioner"]), "a process is left")
    cluster.wait(lambda: mounts() == installed.mounts_before, "something is still mounted", 60)
    assert loops(RUN) == []
    cluster.wait(lambda: not cluster.existing(others), "an object is left")
