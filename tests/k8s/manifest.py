"""The rendered manifest and the chart it is made from, as tests read them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "k8s" / "chart"
RENDERED = ROOT / "k8s" / "quarry.yaml"
NAMESPACE = "quarry-system"
MINORS = ("1.35", "1.36", "1.37")
"""The three latest minor versions of Kubernetes: what the manifest is checked against."""

Object = dict[str, Any]


def rendered() -> list[Object]:
    return load(RENDERED.read_text())


def load(text: str) -> list[Object]:
    return [each for each in yaml.safe_load_all(text) if each]


def render(*values: str) -> list[Object]:
    """What the chart makes with `values` (each KEY=VALUE). Raises CalledProcessError with helm's words in stderr."""
    helm = shutil.which("helm") or "helm"
    argv = [helm, "template", "quarry", CHART, "--namespace", NAMESPACE, "--kube-version", f"{MINORS[-1]}.0"]
    for value in values:
        argv += ["--set", value]
    return load(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)


def of_kind(objects: list[Object], kind: str, name: str = "") -> list[Object]:
    return [each for each in objects if each["kind"] == kind and name in ("", each["metadata"]["name"])]


def one(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = of_kind(objects, kind, name)
    return found


def pod_of(workload: Object) -> Object:
    spec: Object = workload["spec"]["template"]["spec"]
    return spec


def container(workload: Object, name: str) -> Object:
    pod = pod_of(workload)
    (found,) = (each for each in [*pod.get("initContainers", []), *pod["containers"]] if each["name"] == name)
    return dict(found)
