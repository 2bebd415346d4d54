"""The cluster under measurement: an API server, `quarry node` on its target, one `quarry controller`: processes."""

from __future__ import annotations

import asyncio
import json
import re
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from agent.csi.client import CsiClient
from agent.diag.metrics import FRESH_S
from tests.bench.target import Target
from tests.kube.cluster import Cluster
from tests.kube.control_plane import ControlPlane

NODE, BYSTANDER, CONTROLLER = "node-a", "node-b", "one"
API = ("kube-apiserver", "etcd")
PARAMETERS = {"tier": "nvme"}
START_TIMEOUT_S = 60.0
NODES = "/apis/quarry.storage/v1alpha1/storagenodes"

_VERBS = {"POST": "create", "PUT": "update"}
"""What the API server's metric calls otherwise than its permissions do."""

_LINE = re.compile(r"(?P<name>\w+)\{(?P<labels>[^}]*)\} (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass
class Told:
    """What the API server has counted: requests by resource (with its subresource) and verb, what watches sent."""

    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    watch_events: float = 0.0
    watch_bytes: float = 0.0


class MeasuredCluster:
    """Start and stop in the main thread: the processes are to die with it."""

    def __init__(self, folder: Path, spdk_tgt: str | None, target_cpu: int) -> None:
        self._folder = folder
        self._spdk_tgt = spdk_tgt
        self._target_cpu = target_cpu
        self._targets: dict[str, Target] = {}
        self._asked_at: dict[str, float] = {}
        """When each process was asked last: what it tells is not older only some time later."""
        self.plane = ControlPlane()
        self._cluster: Cluster | None = None

    @property
    def target(self) -> Target:
        return self._targets[NODE]

    async def start(self) -> CsiClient:
        """A client of the controller, when volumes can be created."""
        self.plane.start()
        self._cluster = cluster = Cluster(self.plane.kubeconfig)
        cluster.folder.joinpath("config.yaml").unlink()
        cluster.folder.rmdir()
        cluster.folder = self._folder / "cluster"  # with everything else of the run
        cluster.folder.mkdir()
        (cluster.folder / "config.yaml").write_text("{}\n")  # settings as they come
        await self.start_node(NODE, self._spdk_tgt)
        cluster.start(CONTROLLER, "--http-address", "127.0.0.1:0")
        await cluster.leader()
        client = CsiClient(cluster.socket(CONTROLLER))
        deadline = time.monotonic() + START_TIMEOUT_S
        while await client.capacity(PARAMETERS) == 0:
            if time.monotonic() > deadline:
                raise RuntimeError(f"no disk takes volumes: {cluster.logs()}")
            await asyncio.sleep(0.05)
        return client

    async def start_node(self, name: str, spdk_tgt: str | None = None) -> None:
        """A node with a target (None: the embedded one) and a disk of its own; ready when this returns."""
        folder = self._folder / name
        folder.mkdir()
        self._targets[name] = target = Target(folder, spdk_tgt, self._target_cpu)
        await target.start()
        self._require_cluster().start(
            *(name, "--spdk-socket", str(target.socket), "--nvmf-address", target.address),
            *("--http-address", "127.0.0.1:0"),
        )
        await self._require_cluster().node_ready(name)

    def cordon(self, name: str) -> None:
        """No new volumes for this node."""
        self.plane.request("PATCH", f"{NODES}/{name}", b'{"spec":{"cordoned":true}}', "application/merge-patch+json")

    async def stop(self) -> None:
        if self._cluster is not None:
            self._cluster.stop()
        for target in self._targets.values():
            await target.kill()
        self.plane.stop()

    def logs(self) -> dict[str, str]:
        """The last of each process's log."""
        found = {}
        if (self.plane.folder / "kube-apiserver.log").exists():
            found["kube-apiserver"] = self.plane.log("kube-apiserver")
        if self._cluster is not None:
            for file in sorted(self._cluster.folder.glob("*.log")):
                found[file.stem] = self._cluster.log(file.stem)
        return found

    # --- what it costs ---

    def cost(self, name: str) -> tuple[float, float]:
        """CPU seconds that the process (also one of the API's) has used, and its resident memory in MiB."""
        if name in API:
            (process,) = (each for each in psutil.Process().children() if each.name() == name)
        else:
            process = psutil.Process(self._running(name)["pid"])
        cpu = process.cpu_times()
        return cpu.user + cpu.system, process.memory_info().rss / (1 << 20)

    async def requests(self, name: str) -> Counter[tuple[str, str]]:
        """What the process says that it has asked of the API, by kind (with its subresource) and verb."""
        await asyncio.sleep(self._asked_at.get(name, 0.0) + 1.1 * FRESH_S - time.monotonic())
        text = await asyncio.to_thread(_text, f"{self._running(name)['url'].rstrip('/')}/metrics")
        self._asked_at[name] = time.monotonic()
        told = _metrics(text, "quarry_kubernetes_requests_total")
        return Counter({(labels["kind"], labels["verb"]): int(value) for _, labels, value in told})

    def told(self) -> Told:
        """The API server's own account, of our resources."""
        found = Told()
        text = self.plane.request("GET", "/metrics", raw=True).decode()
        for name, labels, value in _metrics(
            text, "apiserver_request_total", "apiserver_watch_events_total", "apiserver_watch_events_sizes_sum"
        ):
            if labels.get("group") != "quarry.storage":
                continue
            if name == "apiserver_request_total":
                resource = "/".join(filter(None, (labels["resource"], labels["subresource"])))
                found.requests[resource, _VERBS.get(labels["verb"], labels["verb"].lower())] += int(value)
            elif name == "apiserver_watch_events_total":
                found.watch_events += value
            else:
                found.watch_bytes += value
        return found

    def _running(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self._require_cluster().folder / name / "http.json").read_text())
        return found

    def _require_cluster(self) -> Cluster:
        if self._cluster is None:
            raise RuntimeError("the cluster is not started")
        return self._cluster


def _text(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        found: bytes = answer.read()
        return found.decode()


def _metrics(text: str, *names: str) -> list[tuple[str, dict[str, str], float]]:
    """Samples of Prometheus's text format, of these names."""
    found = []
    for line in text.splitlines():
        if line.startswith(names) and (match := _LINE.match(line)) and match["name"] in names:
            found.append((match["name"], dict(_LABEL.findall(match["labels"])), float(match["value"])))
    return found
