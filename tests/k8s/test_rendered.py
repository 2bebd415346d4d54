"""The checked-in manifest is the chart's, and the chart says what it has to."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.contract.targets import find_nvmf_tgt, find_spdk_tgt

from .manifest import CHART, RENDERED, ROOT, container, of_kind, one, pod_of, render, rendered

needs_helm = pytest.mark.skipif(shutil.which("helm") is None, reason="no helm on PATH (docs/testing.md)")


@needs_helm
def test_manifest_is_up_to_date(tmp_path: Path) -> None:
    made = tmp_path / "quarry.yaml"
    subprocess.run(["sh", ROOT / "scripts" / "manifests.sh", made], check=True, capture_output=True)
    assert made.read_text() == RENDERED.read_text(), "run `make manifests`"


@needs_helm
def test_chart_passes_helm_lint() -> None:
    done = subprocess.run(["helm", "lint", "--strict", CHART], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_custom_resources_have_one_source() -> None:
    """The chart installs the very files that `make crds` writes, and so does the manifest."""
    folder = ROOT / "k8s" / "crds"
    assert (CHART / "crds").resolve() == folder.resolve()
    installed = {each["metadata"]["name"]: each for each in of_kind(rendered(), "CustomResourceDefinition")}
    made = {f"{file.stem}.quarry.storage": yaml.safe_load(file.read_text()) for file in folder.glob("*.yaml")}
    assert installed == made, "run `make manifests`"


def test_updating_agents_never_restarts_a_target() -> None:
    """The target has a DaemonSet of its own, which replaces no Pod by itself, and nothing of the agent is in it."""
    objects = rendered()
    target, agent = one(objects, "DaemonSet", "quarry-target"), one(objects, "DaemonSet", "quarry-node")
    assert target["spec"]["updateStrategy"] == {"type": "OnDelete"}
    assert agent["spec"]["updateStrategy"]["type"] == "RollingUpdate"
    images = {each["image"] for each in pod_of(target)["containers"]}
    assert not images & {each["image"] for each in pod_of(agent)["containers"]}


def test_the_target_is_started_for_many_volumes() -> None:
    """SPDK serves 1,024 subsystems unless it is told before it initialises, when no agent is there."""
    objects = rendered()
    target = one(objects, "DaemonSet", "quarry-target")
    spdk = container(target, "spdk-tgt")
    folders = {each["mountPath"]: each["name"] for each in spdk["volumeMounts"]}
    (file,) = [each.removeprefix("--config=") for each in spdk["args"] if each.startswith("--config=")]
    folder, _, name = file.rpartition("/")
    maps = {each["name"]: each["configMap"]["name"] for each in pod_of(target)["volumes"] if "configMap" in each}
    startup = json.loads(one(objects, "ConfigMap", maps[folders[folder]])["data"][name])
    (nvmf,) = startup["subsystems"]
    assert nvmf["subsystem"] == "nvmf"
    assert nvmf["config"] == [{"method": "nvmf_set_max_subsystems", "params": {"max_subsystems": 16384}}]


@needs_helm
def test_changes_of_the_agent_leave_the_target_as_it_is() -> None:
    """Other image, settings and logs: the target's DaemonSet is the same, byte for byte, but for its version label."""
    changed = render("image.tag=9.9.9", "config.log.level=debug", "node.logLevel=debug", "sidecars.registrar=v9")
    before, after = (pod_of(one(each, "DaemonSet", "quarry-target")) for each in (rendered(), changed))
    assert before == after
    assert container(one(changed, "DaemonSet", "quarry-node"), "agent")["image"].endswith(":9.9.9")


@needs_helm
@pytest.mark.parametrize(
    ("values", "arguments"),
    [
        (("target.interruptMode=true",), {"--interrupt-mode", "--huge-dir=/hugepages"}),
        (("target.hugepages.enabled=false",), {"--no-huge", "--mem-size=1024"}),
        (("target.cpuMask=0x6", "target.memoryMiB=2048"), {"--cpumask=0x6", "--mem-size=2048"}),
        (("target.extraArgs={--no-pci,-L,lvol}",), {"--no-pci", "-L", "lvol"}),
    ],
)
def test_values_reach_the_target(values: tuple[str, ...], arguments: set[str]) -> None:
    target = container(one(render(*values), "DaemonSet", "quarry-target"), "spdk-tgt")
    assert arguments <= set(target["args"])
    # What sleeps has no iSCSI service, which polls in interrupt mode too.
    assert target["command"] == ["nvmf_tgt" if "--interrupt-mode" in target["args"] else "spdk_tgt"]
    huge = "--no-huge" not in target["args"]
    size = next(each for each in target["args"] if each.startswith("--mem-size=")).partition("=")[2]
    for side in ("requests", "limits"):
        assert target["resources"][side].get("hugepages-2Mi") == (f"{size}Mi" if huge else None)


@pytest.mark.parametrize("find", [find_spdk_tgt, find_nvmf_tgt])
def test_target_takes_these_arguments(find: Callable[[], str | None]) -> None:
    """The real targets know every argument that the chart may give them."""
    program = find()
    if program is None:
        pytest.skip("no spdk_tgt (SPDK_TGT or PATH), or no nvmf_tgt (NVMF_TGT, beside it, or PATH)")
    told = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=30)
    given = [
        each.partition("=")[0] for each in container(one(rendered(), "DaemonSet", "quarry-target"), "spdk-tgt")["args"]
    ]
    for option in [*given, "--no-huge", "--interrupt-mode"]:
        assert re.search(rf"{option}[ ,]", told.stdout + told.stderr), option


def test_only_what_mounts_or_opens_disks_is_privileged() -> None:
    privileged = {
        (each["metadata"]["name"], inner["name"])
        for each in [*of_kind(rendered(), "DaemonSet"), *of_kind(rendered(), "Deployment")]
        for inner in [*pod_of(each).get("initContainers", []), *pod_of(each)["containers"]]
        if inner["securityContext"].get("privileged")
    }
    assert privileged == {("quarry-target", "spdk-tgt"), ("quarry-node", "agent")}


def test_sidecars_wait_for_the_leader_and_hold_no_election() -> None:
    """Decision 0008: one election, and no probe that would restart the controller that waits."""
    controller = one(rendered(), "Deployment", "quarry-controller")
    names = [each["name"] for each in pod_of(controller)["containers"]]
    assert "livenessprobe" not in names
    for name in names:
        if name != "agent":
            sidecar = container(controller, name)
            assert "--leader-election=false" in sidecar["args"]
            assert "livenessProbe" not in sidecar


@needs_helm
def test_snapshots_can_be_left_out() -> None:
    """A cluster without snapshot CRDs can install the rest."""
    objects = render("snapshots.enabled=false")
    assert not [each for each in objects if "snapshot.storage.k8s.io" in each["apiVersion"]]
    assert "csi-snapshotter" not in str(one(objects, "Deployment", "quarry-controller"))
    rules = [rule for role in of_kind(objects, "ClusterRole") for rule in role["rules"]]
    assert not [rule for rule in rules if "snapshot.storage.k8s.io" in rule["apiGroups"]]


@needs_helm
def test_another_namespace_is_meant_everywhere() -> None:
    helm = ["helm", "template", "quarry", str(CHART), "--namespace", "other", "--kube-version", "1.37.0"]
    text = subprocess.run(helm, check=True, capture_output=True, text=True).stdout
    assert "quarry-system" not in text
    assert "system:serviceaccount:other:quarry-node" in text


def test_every_value_is_documented() -> None:
    table = (ROOT / "docs" / "install.md").read_text()
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    open_ended = {"image", "config", "storageClasses", "volumeAttributesClasses", "sidecars"}
    for section, parts in values.items():
        names = [section] if section in open_ended or not isinstance(parts, dict) else [f"{section}.{p}" for p in parts]
        for name in names:
            assert f"`{name}" in table, name


@needs_helm
@pytest.mark.parametrize(
    "value",
    [
        "target.cpuMaks=0x3",
        "target.memoryMiB=1023",
        "target.cpuMask=3",
        "image.pullPolicy=Sometimes",
        "nodes.doctor=false",
    ],
)
def test_values_that_are_none_are_refused(value: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        render(value)
    assert value.partition("=")[0].split(".")[-1] in caught.value.stderr or "nodes" in caught.value.stderr
