"""The cluster as the manifest installs it: tokens of its ServiceAccounts, targets apart from agents, sidecars."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from agent.model import NQN_PREFIX
from agent.spdk import lvol, nvmf
from agent.spdk.client import Client
from tests.k8s.manifest import NAMESPACE

from . import sidecars
from .cluster import CONTROLLERS, NODES, Cluster
from .gate import Gate
from .installation import CONTROLLER, Installation


def pod_of(controller: str) -> str:
    """Name of its Pod, by which it stands for election."""
    return f"{CONTROLLER}-{controller}"


class InstalledCluster(Cluster):
    """Each process has a kubeconfig of its own, with the token of a Pod of its role on its node, through the gate.

    Targets are processes of their own, as they are Pods of their own: what happens to agents does not happen to them.
    """

    namespace = NAMESPACE

    def __init__(
        self,
        installation: Installation,
        gate: Gate,
        kinds: Sequence[str] = ("embedded", "embedded"),
        configuration: str = "",
    ) -> None:
        super().__init__(gate.kubeconfig, kinds, configuration)
        self.installation = installation
        self._gate = gate
        self._tokens: dict[str, str] = {}

    def start(self, name: str, *more: str) -> None:
        """Also a sidecar, as CONTROLLER/SIDECAR, and the snapshot-controller."""
        controller, _, sidecar = name.partition("/")
        if name == sidecars.SNAPSHOT_CONTROLLER:  # one for a cluster, installed by its administrator
            kubeconfig = self.installation.plane.kubeconfig
            self._run(name, [sidecars.find(name) or name, f"--kubeconfig={kubeconfig}"], {})
        elif sidecar:
            kubeconfig = self.folder / f"{controller}.direct"
            self._run(name, *sidecars.command(sidecar, self.socket(controller), kubeconfig, pod_of(controller)))
        else:
            super().start(name, *more)

    def kubeconfig(self, name: str) -> Path:
        """Made at the first start; a second agent of a node has that node's token."""
        path = self.folder / f"{name}.kubeconfig"
        if name not in self._tokens:
            if name in CONTROLLERS:
                owners = [self.installation.replica_set()]
                token = self.installation.pod(CONTROLLER, NODES[CONTROLLERS.index(name)], pod_of(name), owners)
            else:
                token = self.installation.pod("quarry-node", next(each for each in NODES if name.startswith(each)))
            self._tokens[name] = token
            path.write_text(json.dumps(self._gate.config(token)))
            path.with_suffix(".direct").write_text(json.dumps(self.installation.plane.config(token)))
        return path

    def start_sidecars(self) -> None:
        """All that are here, beside each controller, and the snapshot-controller of the cluster."""
        for name in CONTROLLERS:
            for sidecar in sidecars.present():
                self.start(f"{name}/{sidecar}")
        self.start(sidecars.SNAPSHOT_CONTROLLER)

    def asked(self) -> dict[str, Counter[str]]:
        """Requests of each node and controller to the API so far."""
        return {name: self._gate.asked[token].copy() for name, token in self._tokens.items()}

    # --- what the targets have ---

    async def lvols(self) -> dict[str, set[str]]:
        """Names of the lvols in each target."""
        found: dict[str, set[str]] = {}
        for node, target in self._targets.items():
            async with Client(target.socket_path) as rpc:
                await rpc.wait_connected(10.0)
                pools = await lvol.list_lvstores(rpc)
                found[node] = {each.name for pool in pools for each in await lvol.list_lvols(rpc, pool.name)}
        return found

    async def exports(self) -> dict[str, set[str]]:
        """Names of the subsystems of ours in each target."""
        found: dict[str, set[str]] = {}
        for node, target in self._targets.items():
            async with Client(target.socket_path) as rpc:
                await rpc.wait_connected(10.0)
                found[node] = {each.nqn for each in await nvmf.list_subsystems(rpc) if each.nqn.startswith(NQN_PREFIX)}
        return found
