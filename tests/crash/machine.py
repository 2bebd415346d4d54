"""A machine that can be killed: a target and `quarry standalone` on it, two processes; clients and observers."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from agent.csi.client import CallFailed, CsiClient
from agent.model import POOL_PREFIX
from agent.spdk import app, lvol, nvmf
from agent.spdk.client import Client
from agent.volumes.rules.names import volume_of_nqn
from tests.contract.targets import ADDRESS, Target, free_port

NODE = "node-a"
PATIENCE_S = 60.0
"""How long a call may be repeated before the test gives up on convergence."""

REPEAT = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""What an orchestrator answers with the same call again (CSI specification, error scheme; kubelet's own list)."""


@dataclass
class Machine:
    """Two processes over one folder; `kill_*` are SIGKILL, `start_*` bring them back on the same state."""

    kind: str
    target: Target = field(init=False)
    agent: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.target = Target(self.kind, core=1)
        self.folder = self.target.directory
        self.endpoint = f"unix://{self.folder}/csi.sock"
        self.port = free_port()
        self.disk = self.folder / "d0.img"

    def start_agent(self, config: str = "", disk_size: str = "20GiB") -> None:
        """`config`: settings in YAML, besides those every test needs."""
        (self.folder / "config.yaml").write_text(config)
        argv = [sys.executable, "-m", "agent.cli.main", "standalone"]
        argv += ["--state-dir", str(self.folder / "agent"), "--csi-endpoint", self.endpoint, "--node-name", NODE]
        argv += ["--spdk-socket", str(self.target.socket_path), "--file-disk", f"{self.disk}:{disk_size}:ssd"]
        argv += ["--nvmf-address", ADDRESS, "--nvmf-port", str(self.port)]
        argv += ["--config", str(self.folder / "config.yaml")]
        with (self.folder / "agent.log").open("ab") as log:
            self.agent = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill_agent(self) -> None:
        assert self.agent is not None
        assert self.agent.poll() is None, f"the agent died by itself:\n{self.agent_log()[-4000:]}"
        self.agent.kill()
        self.agent.wait()

    def stop_agent(self, timeout_s: float = 30.0) -> int:
        assert self.agent is not None
        self.agent.send_signal(signal.SIGTERM)
        return self.agent.wait(timeout_s)

    def agent_log(self) -> str:
        return (self.folder / "agent.log").read_text(errors="replace")

    def close(self) -> None:
        if self.agent is not None and self.agent.poll() is None:
            self.agent.kill()
            self.agent.wait()
        self.target.close()


class Patient:
    """A CSI client that repeats a call as an orchestrator does: as long as the answer is "ask again"."""

    def __init__(self, endpoint: str) -> None:
        self.client = CsiClient(endpoint, timeout_s=10.0)
        self.answered = 0
        self.repeated = 0
        self._progress = asyncio.Condition()

    async def wait_answered(self, count: int) -> None:
        """Return when `count` calls have been answered."""
        async with asyncio.timeout(2 * PATIENCE_S), self._progress:
            await self._progress.wait_for(lambda: self.answered >= count)

    async def close(self) -> None:
        await self.client.close()

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of CsiClient until it is answered for good."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                result = await getattr(self.client, method)(*args, **kwargs)
            except CallFailed as error:
                if error.code not in REPEAT or time.monotonic() > deadline:
                    raise
                self.repeated += 1
                await asyncio.sleep(0.02)  # the orchestrator's own pause, not a wait for a state
            else:
                async with self._progress:
                    self.answered += 1
                    self._progress.notify_all()
                return result

    async def wait_ready(self) -> None:
        """Return when the agent says that its target serves."""
        deadline = time.monotonic() + PATIENCE_S
        while not await self.call("probe"):
            assert time.monotonic() < deadline, "the target never became ready"
            await asyncio.sleep(0.05)


@dataclass(frozen=True)
class Holdings:
    """What a target has of ours: lvol names, and hosts by exported volume."""

    lvols: list[str]
    exports: dict[str, frozenset[str]]
    namespaces: dict[str, int]


async def holdings(socket: Path) -> Holdings:
    """Read it past the agent, straight from the target."""
    async with Client(socket, call_timeout_s=30) as rpc:
        await rpc.wait_connected(30)
        await app.wait_init(rpc)
        pools = [each.name for each in await lvol.list_lvstores(rpc) if each.name.startswith(POOL_PREFIX)]
        lvols = [each.name for pool in pools for each in await lvol.list_lvols(rpc, pool)]
        subsystems = {volume: each for each in await nvmf.list_subsystems(rpc) if (volume := volume_of_nqn(each.nqn))}
    return Holdings(
        sorted(lvols),
        {volume: frozenset(host.nqn for host in each.hosts) for volume, each in subsystems.items()},
        {volume: len(each.namespaces) for volume, each in subsystems.items()},
    )
