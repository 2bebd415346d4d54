"""The CSI sidecars beside a controller: which are here, and how the manifest's Deployment runs them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.k8s.manifest import NAMESPACE, container, one, rendered

PROGRAMS = ("csi-provisioner", "csi-attacher", "csi-resizer", "csi-snapshotter")
"""Without which there is no life of a claim."""

MONITOR = "csi-external-health-monitor-controller"
SNAPSHOT_CONTROLLER = "snapshot-controller"
SNAPSHOT_KINDS = ("volumesnapshotclasses", "volumesnapshotcontents", "volumesnapshots")


def find(program: str) -> str | None:
    """`program` in QUARRY_SIDECARS, else on PATH."""
    folder = os.environ.get("QUARRY_SIDECARS")
    found = shutil.which(program, path=folder) if folder else None
    return found or shutil.which(program)


def snapshot_definitions() -> list[Path]:
    """The CRDs of external-snapshotter, anywhere under QUARRY_SIDECARS; none unless all are there."""
    folder = os.environ.get("QUARRY_SIDECARS")
    if not folder:
        return []
    names = [f"snapshot.storage.k8s.io_{kind}.yaml" for kind in SNAPSHOT_KINDS]
    found = [next(iter(sorted(Path(folder).rglob(name))), None) for name in names]
    return [each for each in found if each is not None] if all(found) else []


def missing() -> str:
    """What is absent, as the reason of a skip; "" when the life of a claim can be played."""
    absent = [program for program in (*PROGRAMS, SNAPSHOT_CONTROLLER) if find(program) is None]
    if not snapshot_definitions():
        absent.append("CRDs of external-snapshotter")
    return f"no {', '.join(absent)} (QUARRY_SIDECARS or PATH; docs/testing.md)" if absent else ""


def present() -> tuple[str, ...]:
    """All that a controller has beside it, as far as it is here."""
    return tuple(program for program in (*PROGRAMS, MONITOR) if find(program))


def command(sidecar: str, endpoint: str, kubeconfig: Path, pod: str) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment of `sidecar`: the Deployment's, but for the socket and the way to the API."""
    deployed = container(one(rendered(), "Deployment", "quarry-controller"), sidecar)
    given = [each for each in deployed["args"] if not each.startswith("--csi-address=")]
    argv = [find(sidecar) or sidecar, *given, f"--csi-address={endpoint}", f"--kubeconfig={kubeconfig}"]
    return argv, {"NAMESPACE": NAMESPACE, "POD_NAME": pod, "NODE_NAME": "node-a"}
