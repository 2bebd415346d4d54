"""The settings of the agent: every default with its unit and reason, validated once, frozen afterwards.

They come from a YAML file (`--config`) and from the command line, which wins. `docs/configuration.md` is generated
from this model (a test keeps them equal).
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, Strict, model_validator

from agent.config.disks import DiskRule, DiskSettings, FileDisk
from agent.config.fields import (
    AbsolutePath,
    Count,
    Endpoint,
    HttpAddress,
    IpAddress,
    NodeName,
    Percent,
    Seconds,
    Section,
    Size,
    Zone,
    validated,
)
from agent.config.file import read_yaml
from agent.sizes import GIB, KIB, MIB, parse_size

__all__ = ["DiskRule", "DiskSettings", "FileDisk", "Settings", "load_settings", "parse_size"]

ITEMS: Mapping[str, type[BaseModel]] = {
    "file_disks": FileDisk,
    "claim": DiskRule,
    "exclude": DiskRule,
    "known": DiskRule,
}
"""What the fields that are lists consist of."""

# --- sections --------------------------------------------------------------------------------------------------


class PoolSettings(Section):
    """How a claimed disk becomes a pool (an SPDK lvstore), and how far it may fill up.

    Clusters and metadata pages are fixed when the pool is created.
    """

    cluster_bytes: Size = Field(
        default=MIB,
        ge=128 * KIB,
        le=GIB,
        description="Bytes per cluster, the unit of allocation. 1 MiB wastes little on small volumes and clones, "
        "and keeps the allocation map of a 4 TiB disk at 512 KiB. A power of two.",
    )
    metadata_pages_min: Count = Field(
        default=4096,
        ge=256,
        le=1 << 20,
        description="Metadata pages (4 KiB) of the smallest pool. A volume or snapshot takes one, and one more for "
        "every 512 clusters written.",
    )
    metadata_pages_per_tib: Count = Field(
        default=16_384,
        ge=4_000,
        le=1 << 22,
        description="Metadata pages added for each TiB: room for more than 4,000 volumes per TiB and what they write. "
        "After a crash SPDK reads every page, one by one (45 µs each, measured), before the pool is back: "
        "SPDK's default of a page for every cluster costs 47 s for each TiB of 1 MiB clusters, this one a second.",
    )
    overprovision_ratio: Annotated[float, Strict()] = Field(
        default=10.0,
        ge=1,
        le=1000,
        allow_inf_nan=False,
        description="How many times its real size a pool may promise to thin volumes. Most volumes stay mostly "
        "empty; 1 promises only what is there.",
    )
    reserve_percent: Percent = Field(
        default=5.0,
        le=90,
        description="Percent of a pool's size kept for what exists: when less is free, new volumes, growth and "
        "snapshots are refused, and no thick volume takes from it. A full pool fails the writes of its thin volumes.",
    )
    warning_percent: Percent = Field(
        default=20.0,
        le=100,
        description="Percent of a pool's size: when less is free, its disk and thin volumes are reported as abnormal.",
    )
    refresh_interval_s: Seconds = Field(
        default=3.0,
        description="Seconds between looks at the free space of pools (one call): how late one that fills is noticed.",
    )

    deletions_linger_s: Seconds = Field(
        default=2.0,
        description="Seconds without a deletion after which the note that deletions are under way is taken back from "
        "the disk's record. A target that dies while it stands has the pool's free space zeroed; taking it back after "
        "each deletion costs two writes to the store for each.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.cluster_bytes & (self.cluster_bytes - 1):
            raise ValueError(f"cluster_bytes: {self.cluster_bytes} is not a power of two")
        if self.warning_percent < self.reserve_percent:
            raise ValueError("warning_percent is below reserve_percent")
        return self


class RpcSettings(Section):
    """The JSON-RPC connection to the SPDK target."""

    call_timeout_s: Seconds = Field(
        default=10.0,
        description="Seconds until a call without an answer fails. Calls take milliseconds; creating a pool on a "
        "large disk takes seconds.",
    )
    heartbeat_interval_s: Seconds = Field(
        default=2.0,
        description="Seconds between questions whether the target still answers; one that does not answer within as "
        "long is reported as unreachable.",
    )
    reconnect_min_s: Seconds = Field(
        default=0.05, description="Seconds before the first attempt to reconnect: a restarting target is back soon."
    )
    reconnect_max_s: Seconds = Field(
        default=2.0,
        description="Longest pause between attempts, in seconds: bounds how late a returned target is seen.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.reconnect_min_s > self.reconnect_max_s:
            raise ValueError("reconnect_min_s is above reconnect_max_s")
        return self


class ReconcileSettings(Section):
    """The loop that makes the target match what is desired."""

    audit_interval_s: Seconds = Field(
        default=60.0,
        description="Seconds between full comparisons of the target with what we believe it holds. Changes are acted "
        "on at once; the audit only finds what somebody else changed.",
    )
    retry_min_s: Seconds = Field(default=0.1, description="Seconds before the first retry of a failed step.")
    retry_max_s: Seconds = Field(
        default=10.0, description="Longest pause between retries, in seconds; the pause doubles up to here."
    )
    parallel: Count = Field(
        default=64,
        ge=1,
        le=1024,
        description="Volumes worked on at the same time. The target polls its socket every 4 ms, so throughput comes "
        "from calls in flight; beyond 64 it gains little.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.retry_min_s > self.retry_max_s:
            raise ValueError("retry_min_s is above retry_max_s")
        return self


class SnapshotSettings(Section):
    """How snapshots are taken."""

    freeze_timeout_s: Seconds = Field(
        default=3.0,
        le=60,
        description="Longest time in seconds for which the filesystem of a volume in use is frozen while its snapshot "
        "is taken: its writers wait. A snapshot takes milliseconds; one that takes longer is given up and repeated.",
    )


class LogSettings(Section):
    """What the agent says on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severity shown. `info` tells each change to a volume, not each call."
    )
    format: Literal["text", "json"] = Field(
        default="text", description="`text` for people, `json` (one object a line) for log collectors."
    )


# --- the whole -------------------------------------------------------------------------------------------------


class Settings(Section):
    """Everything `quarry standalone`, `node` and `controller` can be told.

    Relative paths are taken from the working directory.
    """

    node_name: NodeName = Field(
        default_factory=socket.gethostname,
        description="Name of this node, up to 253 characters, unique in its cluster and never reused; the default is "
        "the host name. Disks, attachments and the host NQN refer to it.",
    )
    zone: Zone = Field(
        default="",
        description="The part of the cluster this node fails together with (a rack, a room, a cloud's zone), reported "
        "as topology key `csi.quarry.storage/zone`; empty: none. In Kubernetes give it the node's label "
        "`topology.kubernetes.io/zone`.",
    )
    state_dir: AbsolutePath = Field(
        default=Path("/var/lib/quarry"),
        description="Folder of the database, sockets and embedded target; has to survive restarts.",
    )
    csi_endpoint: Endpoint = Field(
        default_factory=lambda data: f"unix://{data['state_dir']}/csi.sock" if "state_dir" in data else "",
        description="Where CSI is served: `unix://` and an absolute path of at most 107 bytes. "
        "The default is `csi.sock` in `state_dir`.",
    )
    http_address: HttpAddress = Field(
        default="127.0.0.1:0",
        description="Where health, metrics and resources are served over HTTP, read-only "
        "([operations.md](operations.md)): `ADDRESS:PORT`, an IPv6 address in brackets; port 0 is any free one, "
        "written to `http.json` in `state_dir`. Empty: nowhere. The default reaches this machine only: whoever can "
        "connect can read, there is no password.",
    )
    spdk_socket: AbsolutePath | None = Field(
        default=None,
        description="JSON-RPC socket of a running SPDK target. Without it the embedded target (development only) is "
        "started as a child process.",
    )
    nvmf_address: IpAddress = Field(
        default="127.0.0.1",
        description="Address where volumes are exported over NVMe/TCP. The default reaches this machine only, since "
        "NVMe/TCP itself encrypts nothing.",
    )
    nvmf_port: Count = Field(
        default=4420, ge=1, le=65535, description="TCP port of the exports; 4420 is the one assigned to NVMe by IANA."
    )
    max_volumes_per_node: Count = Field(
        default=0,
        ge=0,
        le=100_000,
        description="How many volumes may be published to this node, told to the scheduler (NodeGetInfo); 0: no limit. "
        "The target has its own: it refuses to create the 1,024th volume unless `nvmf_set_max_subsystems` raised that.",
    )
    file_disks: tuple[FileDisk, ...] = Field(
        default=(), description="Regular files used as disks, each `PATH:SIZE:TIER`, like `/srv/d0.img:20GiB:ssd`."
    )
    disks: DiskSettings = Field(default_factory=DiskSettings, description="Which disks of the machine become pools.")
    mount_roots: tuple[AbsolutePath, ...] = Field(
        default_factory=lambda data: (
            Path("/var/lib/kubelet"),
            *([data["state_dir"] / "csi"] if "state_dir" in data else []),
        ),
        min_length=1,
        description="Folders below which volumes may be staged and mounted; paths outside are refused. "
        "The default is kubelet's folder and `csi` in `state_dir`.",
    )
    kubeconfig: AbsolutePath | None = Field(
        default=None,
        description="How `node` and `controller` reach the Kubernetes API; the default is the Pod's ServiceAccount, "
        "outside of a Pod `KUBECONFIG` or `~/.kube/config`.",
    )
    lease_namespace: str = Field(
        default="",
        max_length=63,
        description="Kubernetes namespace of the Leases: `quarry-controller`, and `quarry-node-<node name>` for each "
        "node. The default is that of the Pod, else `quarry-system`.",
    )
    identity: str = Field(
        default_factory=socket.gethostname,
        min_length=1,
        max_length=253,
        description="What this controller is called in the Lease of the leader, unique among the controllers.",
    )
    pool: PoolSettings = Field(default_factory=PoolSettings, description="How disks become pools.")
    rpc: RpcSettings = Field(default_factory=RpcSettings, description="The connection to the SPDK target.")
    reconcile: ReconcileSettings = Field(
        default_factory=ReconcileSettings, description="The loop that closes differences."
    )
    snapshot: SnapshotSettings = Field(default_factory=SnapshotSettings, description="How snapshots are taken.")
    log: LogSettings = Field(default_factory=LogSettings, description="Log output.")

    @model_validator(mode="after")
    def _distinct_disks(self) -> Self:
        paths = [disk.path for disk in self.file_disks]
        for path in paths:
            if paths.count(path) > 1:
                raise ValueError(f"file_disks: {path} is named twice")
        return self


def load_settings(file: Path | None = None, **overrides: Any) -> Settings:
    """Settings from `file` (YAML), with `overrides` (the command line) on top, key by key also inside sections.

    Overrides that are None or empty count as not given. Raises InvalidArgument naming the field and the remedy.
    """
    document = read_yaml(file) if file is not None else {}
    given = {key: value for key, value in overrides.items() if value is not None and value != ()}
    return validated(Settings, _merged(document, given), "", ITEMS)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        former = result.get(key)
        nested = isinstance(value, Mapping) and isinstance(former, Mapping)
        result[key] = _merged(former, value) if nested and isinstance(former, Mapping) else value
    return result
