"""The chart rendered for this machine, and the images that its references stand for here."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.e2e import programs
from tests.e2e.images import APP, PAUSE, ROOT, Assembly
from tests.e2e.oci import Image

NAMESPACE = "quarry-system"
SHARED = Path("/var/run/quarry")
"""The one folder of the node that target and agent both see; here also the file that is their disk."""
DISK_GIB, TARGET_MIB = 4, 1024
SPDK, EMBEDDED = "spdk", "embedded"


@dataclass(frozen=True, slots=True)
class Flavour:
    """Which program the target's Pod runs, and how volumes get to the kernel; "" where they cannot."""

    name: str
    frontend: str
    hugepages: bool = False

    @property
    def says(self) -> str:
        memory = "hugepages" if self.hugepages else "no hugepages"
        target = f"nvmf_tgt in interrupt mode with {memory}" if self.name == SPDK else "the embedded target"
        way = f"frontend {self.frontend}" if self.frontend else "no way to the kernel: volumes are made, not mounted"
        return f"{target}; {way}"


def flavours() -> list[Flavour]:
    """What can be installed here. The second one is for kernels that cannot attach volumes of the first."""
    kernel, found = programs.kernel(), []
    if programs.nvmf_tgt():
        found.append(Flavour(SPDK, "nvme-tcp" if kernel.nvme_tcp else "", kernel.free_hugepages_mib >= TARGET_MIB))
    if not kernel.nvme_tcp or not found:
        found.append(Flavour(EMBEDDED, "loop"))
    return found


def render(flavour: Flavour) -> list[dict[str, Any]]:
    """All objects. Values are those that an administrator would give on a machine like this one."""
    parameters = {"frontend": flavour.frontend} if flavour.frontend else {}
    values = {
        "namespace": {"create": True},
        "snapshots": {"enabled": False},
        "config": {
            "log": {"format": "text", "level": "debug"},
            "file_disks": [{"path": str(SHARED / f"{flavour.name}.img"), "size": f"{DISK_GIB}GiB", "tier": "ssd"}],
        },
        "target": {
            "image": {"tag": flavour.name},
            "interruptMode": True,
            "memoryMiB": TARGET_MIB,
            "hugepages": {"enabled": flavour.hugepages},
            "resources": {"requests": {"cpu": "100m"}},
        },
        "storageClasses": {"ssd": {"parameters": parameters}},
    }
    argv = [str(programs.need("helm")), "template", "quarry", str(ROOT / "k8s/chart"), "--namespace", NAMESPACE]
    argv += ["--include-crds", "--kube-version", "1.37.0", "--values", "-"]
    done = subprocess.run(argv, input=json.dumps(values), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def pods_of(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Containers of every Pod, init containers too."""
    for each in objects:
        spec = each.get("spec", {}).get("template", {}).get("spec", {})
        yield from [*spec.get("initContainers", []), *spec.get("containers", [])]


def assemble(assembly: Assembly) -> list[Image]:
    """An image for every reference in the manifests, under that very name."""
    made: dict[str, Image] = {}
    for flavour in flavours():
        for container in pods_of(render(flavour)):
            reference = container["image"]
            if reference not in made:
                made[reference] = _assembled(assembly, reference)
    plain = [assembly.of_base(reference, ("sleep", "infinity")) for reference in (PAUSE, APP)]
    return [*made.values(), *plain]


def _assembled(assembly: Assembly, reference: str) -> Image:
    name, _, tag = reference.rpartition("/")[2].partition(":")
    if name == "agent":
        return assembly.of_dockerfile(reference)
    if name == "spdk-tgt" and tag == SPDK:
        return assembly.of_spdk(programs.nvmf_tgt() or programs.need("nvmf_tgt"), reference)
    if name == "spdk-tgt":
        return assembly.of_embedded(assembly.of_dockerfile(reference), reference)
    return assembly.of_program(programs.need(name), reference)
