"""What the checks look at. Plain data; None is what could not be learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from agent.diag.activity import Activity
from agent.spdk.nature import Nature


class ModuleState(StrEnum):
    """Of a kernel module."""

    LOADED = "loaded"
    BUILT_IN = "built in"
    LOADABLE = "loadable"
    """There is a file of it for this kernel; nothing has loaded it."""
    MISSING = "missing"
    UNKNOWN = "unknown"
    """Not loaded, and which modules the kernel has is not visible here (a container without /lib/modules)."""


@dataclass(frozen=True, slots=True)
class Hugepages:
    """Pages of 2 MiB. `pods_limit_bytes`: what kubelet's cgroup of all Pods may use; None where there is none."""

    total: int = 0
    free: int = 0
    pods_limit_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Program:
    """`path` is empty when it is not on this machine; `version` as it says itself, empty when not asked."""

    path: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """`socket` None: none was named, the agent starts its own. `trouble`: why it does not answer."""

    socket: Path | None = None
    version: str = ""
    pid: int | None = None
    trouble: str = ""
    nature: Nature | None = None
    activity: Activity | None = None
    """How busy it was while it was looked at; None when it does not tell."""

    @property
    def answers(self) -> bool:
        return bool(self.version)


@dataclass(frozen=True, slots=True)
class PortFacts:
    """Who listens at the port of the exports; `pid` None: nobody may know."""

    number: int = 4420
    taken: bool = False
    pid: int | None = None
    program: str = ""


@dataclass(frozen=True, slots=True)
class HostIdentity:
    """Contents of /etc/nvme/hostnqn and hostid; None: there is no such file."""

    nqn: str | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True)
class FolderFacts:
    """The state folder; without it `filesystem`, `free_bytes` and `writable` are those of the folder it would be in."""

    path: Path = Path("/var/lib/quarry")
    exists: bool = True
    filesystem: str = ""
    writable: bool = True
    free_bytes: int = 1 << 40


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """`ready` None: no agent answers, and `trouble` says why; False: `reasons` do."""

    url: str = ""
    ready: bool | None = None
    reasons: tuple[str, ...] = ()
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """A disk in service, files excepted: whether it keeps nothing back that was synced, and what is said of that."""

    path: str
    is_safe: bool
    said: str


@dataclass(frozen=True, slots=True)
class KubernetesFacts:
    """What kubelet needs of a node plugin. `registry_visible`: whether its folder can be seen from here."""

    csi_socket: Path
    csi_socket_exists: bool = False
    registration_socket: Path = Path("/var/lib/kubelet/plugins_registry/csi.quarry.storage-reg.sock")
    registration_exists: bool = False
    registry_visible: bool = False


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything the checks judge."""

    kernel: str = ""
    architecture: str = "x86_64"
    modules: Mapping[str, ModuleState] = field(default_factory=dict)
    cpu_flags: frozenset[str] = frozenset()
    cpus: int = 0
    memory_bytes: int = 0
    memory_available_bytes: int = 0
    hugepages: Hugepages = Hugepages()
    iommu_groups: int = 0
    programs: Mapping[str, Program] = field(default_factory=dict)
    target: TargetFacts = TargetFacts()
    port: PortFacts = PortFacts()
    host: HostIdentity = HostIdentity()
    state_dir: FolderFacts = FolderFacts()
    clock_synchronized: bool | None = None
    now: float = 0.0
    agent: AgentFacts = AgentFacts()
    disks: tuple[DiskFacts, ...] = ()
    """None when no agent answers."""
    kubernetes: KubernetesFacts | None = None
    """None: not under Kubernetes."""
    is_root: bool = True
    udev_serves: bool = True
