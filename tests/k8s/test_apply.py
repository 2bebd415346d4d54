"""A real API server takes the rendered manifest, strictly, and what it stores is what was meant."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from .cluster import Cluster
from .manifest import NAMESPACE, RENDERED, rendered


def test_nothing_is_unknown_to_the_api_server(cluster: Cluster) -> None:
    """Applied again with strict validation: no field is unknown, none twice, nothing has defaults that fight it."""
    for each in rendered():
        answer = cluster.apply(each, dry=True)
        assert answer.code == 200, f"{each['kind']} {each['metadata']['name']}: {answer.message}"


def test_kubectl_apply_twice_changes_nothing(cluster: Cluster) -> None:
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


def _versions(cluster: Cluster) -> dict[str, str]:
    paths = [cluster.path(each) for each in rendered()]
    return {path: cluster.admin("GET", path).body["metadata"]["resourceVersion"] for path in paths}


def test_policies_have_no_type_errors(cluster: Cluster) -> None:
    """Expressions are compiled when a policy is stored; a refusal would show as `evaluation error` in their answers."""
    for each in rendered():
        if each["kind"] == "ValidatingAdmissionPolicy":
            stored = cluster.admin("GET", cluster.path(each)).body
            assert stored["spec"]["failurePolicy"] == "Fail"
            assert stored["spec"]["validations"] == each["spec"]["validations"]


def test_pod_security_admits_our_pods_only_where_it_has_to(cluster: Cluster) -> None:
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


def test_controller_fits_the_strictest_level(cluster: Cluster) -> None:
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
