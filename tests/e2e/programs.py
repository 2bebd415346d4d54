"""The programs that a cluster is made of, found in folders of QUARRY_E2E_BIN, then on PATH."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

FOLDERS = "QUARRY_E2E_BIN"

CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
RUNTIME = ("kubelet", "containerd", "containerd-shim-runc-v2", "ctr", "runc")
NETWORK = ("ptp", "host-local", "loopback")
SIDECARS = (
    "csi-provisioner",
    "csi-attacher",
    "csi-resizer",
    "csi-external-health-monitor-controller",
    "csi-node-driver-registrar",
    "livenessprobe",
)
TOOLS = ("kubectl", "helm", "mmdebstrap", "openssl", "ip", "unshare", "setpriv", "losetup", "mkfs.ext4")
GROUPS = {
    "control plane": CONTROL_PLANE,
    "node": RUNTIME,
    "network plugins": NETWORK,
    "CSI sidecars": SIDECARS,
    "tools": TOOLS,
}


def search_path() -> str:
    """Folders as PATH has them."""
    named = [os.environ.get(FOLDERS, ""), os.environ.get("KUBEBUILDER_ASSETS", ""), os.environ.get("PATH", "")]
    return os.pathsep.join(filter(None, [*named, "/opt/cni/bin", "/usr/sbin", "/sbin"]))


def find(program: str) -> Path | None:
    found = shutil.which(program, path=search_path())
    return Path(found) if found else None


def need(program: str) -> Path:
    found = find(program)
    if found is None:
        raise FileNotFoundError(program)
    return found


def spdk_tgt() -> Path | None:
    """SPDK_TGT, or the one on PATH."""
    named = os.environ.get("SPDK_TGT")
    return Path(named) if named else find("spdk_tgt")


def nvmf_tgt() -> Path | None:
    """NVMF_TGT, the one beside SPDK_TGT, or the one on PATH: what the manifest starts in interrupt mode."""
    beside = spdk_tgt()
    named = os.environ.get("NVMF_TGT") or (beside and beside.with_name("nvmf_tgt"))
    return Path(named) if named and Path(named).exists() else find("nvmf_tgt")


def missing() -> str:
    """What a cluster lacks here; "" when it can be started."""
    absent = [each for group in GROUPS.values() for each in group if find(each) is None]
    if os.geteuid() != 0:
        return "not root"
    return f"no {', '.join(absent)} ({FOLDERS} or PATH; docs/testing.md)" if absent else ""


@dataclass(frozen=True, slots=True)
class Kernel:
    """What the kernel offers to volumes."""

    nvme_tcp: bool
    free_hugepages_mib: int


def kernel() -> Kernel:
    text = Path("/proc/meminfo").read_text()
    facts = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines() if ":" in line}
    free = facts.get("HugePages_Free", 0) * facts.get("Hugepagesize", 0) // 1024
    return Kernel(Path("/dev/nvme-fabrics").exists(), free if facts.get("Hugepagesize") == 2048 else 0)
