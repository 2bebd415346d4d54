"""A cluster that is looked at from both ends: what it asks of the API, and what its targets have."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from agent.model import VOLUME_NQN_PREFIX
from agent.spdk import lvol, nvmf
from agent.spdk.client import Client

from .cluster import Cluster
from .gate import Gate


class GatedCluster(Cluster):
    """Each process has a kubeconfig of its own, which leads through the gate.

    Targets are processes of their own, as they are Pods of their own: what happens to agents does not happen to them.
    """

    def __init__(self, gate: Gate, kinds: Sequence[str] = ("embedded", "embedded"), configuration: str = "") -> None:
        super().__init__(gate.kubeconfig, kinds, configuration)
        self._gate = gate
        self._tokens: dict[str, str] = {}

    def kubeconfig(self, name: str) -> Path:
        """Made at the first start."""
        path = self.folder / f"{name}.kubeconfig"
        if name not in self._tokens:
            self._tokens[name] = self.token(name)
            path.write_text(json.dumps(self._gate.config(self._tokens[name])))
        return path

    def token(self, name: str) -> str:
        """As whom a process comes; it is told from others by it."""
        return name

    def asked(self) -> dict[str, Counter[str]]:
        """Requests of each node and controller to the API so far."""
        return {name: self._gate.asked[token].copy() for name, token in self._tokens.items()}

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
        """Names of the subsystems of volumes in each target."""
        found: dict[str, set[str]] = {}
        for node, target in self._targets.items():
            async with Client(target.socket_path) as rpc:
                await rpc.wait_connected(10.0)
                found[node] = {
                    each.nqn for each in await nvmf.list_subsystems(rpc) if each.nqn.startswith(VOLUME_NQN_PREFIX)
                }
        return found
