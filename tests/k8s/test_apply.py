"""A real API server takes the rendered manifest, strictly, and what it stores is what was meant."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.kube.installation import QUARRY, Installation, resource

from .manifest import NAMESPACE, RENDERED, rendered


def test_nothing_is_unknown_to_the_api_server(cluster: Installation) -> None:
    """Applied again with strict validation: no field is unknown, none twice, nothing has defaults that fight it."""
    for each in rendered():
        answer = cluster.apply(each, dry=True)
        assert answer.code == 200, f"{each['kind']} {each['metadata']['name']}: {answer.message}"


def test_kubectl_apply_twice_changes_nothing(cluster: Installation) -> None:
    """The documented command, and again: an upgrade to the same version leaves every object as it is."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl on PATH")
    argv = ["kubectl", "--kubeconfig", str(cluster.plane.kubeconfig), "apply", "--server-side", "--force-conflicts"]
    argv += ["-f", str(RENDERED)]
    for _ in range(2):
        done = subprocess.run(argv, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
    versions = _versions(cluster)
    subprocess.run(argv, check=True, capture_output=True, timeout=100)
    assert _versions(cluster) == versions


def test_deleting_the_whole_manifest_keeps_what_is_recorded(cluster: Installation, tmp_path: Path) -> None:
    """`kubectl delete -f` takes everything but the definitions, with them the records; installing again finds them."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl on PATH")
    cluster.store(resource("Volume", "precious", {"csiName": "pvc", "sizeBytes": 1, "tier": "ssd"}))
    file = tmp_path / "quarry.yaml"
    # Without the namespace: nothing here would end its deletion, which is the work of a controller-manager.
    file.write_text(yaml.safe_dump_all([each for each in rendered() if each["kind"] != "Namespace"]))
    argv = ["kubectl", "--kubeconfig", str(cluster.plane.kubeconfig), "delete", "--wait=false", "-f", str(file)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100)
    try:
        assert done.returncode != 0 and done.stderr.count("allow-deletion") == 5, done.stderr
        assert cluster.admin("GET", f"{QUARRY}/volumes/precious").body["metadata"].get("deletionTimestamp") is None
        for each in rendered():
            if each["kind"] == "VolumeAttributesClass":  # its finalizer is a controller-manager's to take off
                cluster.admin("PATCH", cluster.path(each), {"metadata": {"finalizers": None}})
        left = [each for each in rendered() if cluster.admin("GET", cluster.path(each)).code == 200]
        assert {each["kind"] for each in left} == {"Namespace", "CustomResourceDefinition"}
    finally:
        cluster.install()


def _versions(cluster: Installation) -> dict[str, str]:
    paths = [cluster.path(each) for each in rendered()]
    return {path: cluster.admin("GET", path).body["metadata"]["resourceVersion"] for path in paths}


def test_policies_have_no_type_errors(cluster: Installation) -> None:
    """Expressions are compiled when a policy is stored; a refusal would show as `evaluation error` in their answers."""
    for each in rendered():
        if each["kind"] == "ValidatingAdmissionPolicy":
            stored = cluster.admin("GET", cluster.path(each)).body
            assert stored["spec"]["failurePolicy"] == "Fail"
            assert stored["spec"]["validations"] == each["spec"]["validations"]


def test_pod_security_admits_our_pods_only_where_it_has_to(cluster: Installation) -> None:
    """A node agent is admitted in our namespace, and refused in one with the level `baseline`."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "elsewhere", "labels": {}}}
    namespace["metadata"]["labels"] = {"pod-security.kubernetes.io/enforce": "baseline"}  # type: ignore[index]
    cluster.make("/api/v1/namespaces", namespace)
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "quarry-node"}}
    cluster.make("/api/v1/namespaces/elsewhere/serviceaccounts", account)
    (agent,) = (e for e in rendered() if e["kind"] == "DaemonSet" and e["metadata"]["name"] == "quarry-node")
    template = agent["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "trial"}, "spec": template["spec"]}
    here = cluster.admin("POST", f"/api/v1/namespaces/{NAMESPACE}/pods?dryRun=All", pod)
    there = cluster.admin("POST", "/api/v1/namespaces/elsewhere/pods?dryRun=All", pod)
    assert here.code == 201, here.message
    assert there.code == 403 and "PodSecurity" in there.message


def test_controller_fits_the_strictest_level(cluster: Installation) -> None:
    """The controller and its sidecars need nothing of the kernel: PodSecurity `restricted` admits them."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "strict", "labels": {}}}
    namespace["metadata"]["labels"] = {"pod-security.kubernetes.io/enforce": "restricted"}  # type: ignore[index]
    cluster.make("/api/v1/namespaces", namespace)
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "quarry-controller"}}
    cluster.make("/api/v1/namespaces/strict/serviceaccounts", account)
    (deployment,) = (e for e in rendered() if e["kind"] == "Deployment")
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "trial"}}
    pod["spec"] = deployment["spec"]["template"]["spec"]
    answer = cluster.admin("POST", "/api/v1/namespaces/strict/pods?dryRun=All", pod)
    assert answer.code == 201, answer.message


def test_definitions_are_not_deleted_by_accident(cluster: Installation) -> None:
    """Deleting the whole manifest keeps the records, and so the data; who means it says so first."""
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/volumes.quarry.storage"
    answer = cluster.admin("DELETE", f"{path}?dryRun=All")
    assert answer.code == 403 and "allow-deletion" in answer.message
    annotated = {"metadata": {"annotations": {"quarry.storage/allow-deletion": "true"}}}
    try:
        assert cluster.admin("PATCH", path, annotated).code == 200
        assert cluster.admin("DELETE", f"{path}?dryRun=All").code == 200
    finally:
        annotated["metadata"]["annotations"]["quarry.storage/allow-deletion"] = None  # type: ignore[assignment]
        cluster.admin("PATCH", path, annotated)
    others = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/volumesnapshotclasses.snapshot.storage.k8s.io"
    assert cluster.admin("DELETE", f"{others}?dryRun=All").code == 200
