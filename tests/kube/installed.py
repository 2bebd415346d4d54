"""The cluster as the manifest installs it: tokens of its ServiceAccounts, sidecars."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tests.k8s.manifest import NAMESPACE

from . import sidecars
from .cluster import CONTROLLERS, NODES
from .gate import Gate
from .gated import GatedCluster
from .installation import CONTROLLER, Installation


def pod_of(controller: str) -> str:
    """Name of its Pod, by which it stands for election."""
    return f"{CONTROLLER}-{controller}"


class InstalledCluster(GatedCluster):
    """Each process has the token of a Pod of its role on its node."""

    namespace = NAMESPACE

    def __init__(
        self,
        installation: Installation,
        gate: Gate,
        kinds: Sequence[str] = ("embedded", "embedded"),
        configuration: str = "",
    ) -> None:
        super().__init__(gate, kinds, configuration)
        self.installation = installation

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

    def token(self, name: str) -> str:
        """A second agent of a node has that node's."""
        if name in CONTROLLERS:
            owners = [self.installation.replica_set()]
            return self.installation.pod(CONTROLLER, NODES[CONTROLLERS.index(name)], pod_of(name), owners)
        if (node := self.node_names.get(name)) is not None:
            self.installation.add_node(node)
            return self.installation.pod("quarry-node", node, f"quarry-node-{len(node)}")
        return self.installation.pod("quarry-node", next(each for each in NODES if name.startswith(each)))

    def start_sidecars(self) -> None:
        """All that are here, beside each controller, and the snapshot-controller of the cluster.

        They are not counted among who asks: their requests do not go through the gate.
        """
        for name in CONTROLLERS:
            direct = self.installation.plane.config(self._tokens[name])
            (self.folder / f"{name}.direct").write_text(json.dumps(direct))
            for sidecar in sidecars.present():
                self.start(f"{name}/{sidecar}")
        self.start(sidecars.SNAPSHOT_CONTROLLER)
