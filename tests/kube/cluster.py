"""Two nodes and two controllers as processes, against a real API server, and an orchestrator that asks again."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self, TypeVar

import grpc

from agent.csi.client import CallFailed, CsiClient
from agent.nvmf import initiator
from tests.contract.targets import DIE_WITH_US, Target, free_port

from .gate import Gate

NODES = ("node-a", "node-b")
CONTROLLERS = ("one", "two")
PATIENCE_S = 60.0
CALL_S = 10.0
MIB = 1 << 20

AGAIN = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""Answers after which an orchestrator asks again."""

T = TypeVar("T")


class Cluster:
    """All processes reach the API by `kubeconfig`, with its permissions; `configuration` is that of all of them.

    `kinds` of targets, one for each node, are processes of their own; without any each agent starts an embedded one.
    """

    namespace = "default"
    """Of the Leases."""

    def __init__(self, kubeconfig: Path, kinds: Sequence[str] = (), configuration: str = "") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="qroles-", dir="/tmp"))
        self._kubeconfig = kubeconfig
        self._ports = {name: free_port() for name in NODES}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._targets = {name: Target(kind, core) for core, (name, kind) in enumerate(zip(NODES, kinds, strict=False))}
        self.restarts: Counter[str] = Counter()
        self.node_names: dict[str, str] = {}
        """Of processes whose node is called otherwise."""
        (self.folder / "config.yaml").write_text("reconcile: {audit_interval_s: 5.0}\n" + configuration)

    def kubeconfig(self, name: str) -> Path:
        """By which a process reaches the API."""
        return self._kubeconfig

    def socket(self, name: str) -> str:
        return f"unix://{self.folder}/{name}.sock"

    def start(self, name: str, *more: str) -> None:
        """A node or a controller. To be called in the main thread."""
        role = "node" if name.startswith("node-") else "controller"
        argv = [sys.executable, "-m", "agent.cli.main", role, "--kubeconfig", str(self.kubeconfig(name))]
        argv += ["--lease-namespace", self.namespace, "--csi-endpoint", self.socket(name), "--http-address", ""]
        argv += ["--state-dir", str(self.folder / name), "--config", str(self.folder / "config.yaml")]
        if role == "node":
            port = self._ports.setdefault(name, free_port())
            argv += ["--node-name", self.node_names.get(name, name), "--nvmf-port", str(port)]
            argv += ["--file-disk", f"{self.folder}/{name}.img:2GiB:nvme"]
            if name in self._targets:
                argv += ["--spdk-socket", str(self._targets[name].socket_path)]
        else:
            argv += ["--identity", name]
        self._run(name, [*argv, *more], {})

    def start_all(self) -> None:
        for target in self._targets.values():
            target.start()
        for name in (*NODES, *CONTROLLERS):
            self.start(name)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Everything is started, and ready when the block begins; at its end all is stopped."""
        try:
            self.start_all()
            await self.whole()
            yield self
        finally:
            await asyncio.to_thread(self.stop)

    def kill_target(self, node: str) -> None:
        self._targets[node].kill()

    def start_target(self, node: str) -> None:
        self._targets[node].start()

    def _run(self, name: str, argv: list[str], environment: dict[str, str]) -> None:
        with self._log(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [*DIE_WITH_US, *argv], stdout=log, stderr=log, env={**os.environ, **environment}
            )

    def kill(self, name: str) -> None:
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def signal(self, name: str, number: int) -> None:
        """As kill(2)."""
        self._processes[name].send_signal(number)

    def ended(self, name: str) -> int | None:
        return self._processes[name].poll()

    @asynccontextmanager
    async def kubelet(self) -> AsyncIterator[None]:
        """Starts what ends by itself again, as kubelet does; what was killed here stays away until it is started."""

        async def revive() -> None:
            while True:
                for name, process in list(self._processes.items()):
                    if process.poll() is not None:
                        self.restarts[name] += 1
                        self.start(name)
                await asyncio.sleep(0.2)

        task = asyncio.create_task(revive())
        try:
            yield
        finally:
            task.cancel()

    def stop(self) -> None:
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        for process in self._processes.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for target in self._targets.values():
            target.close()
        if not os.environ.get("KEEP"):
            shutil.rmtree(self.folder, ignore_errors=True)

    def _log(self, name: str) -> Path:
        return self.folder / f"{name.replace('/', '-')}.log"

    def log(self, name: str) -> str:
        return self._log(name).read_text(errors="replace")[-4000:]

    def logs(self) -> str:
        """The last of each."""
        return "\n".join(f"--- {name}\n{self.log(name)}" for name in sorted(self._processes))

    # --- as an orchestrator does ---

    async def leader(self) -> str:
        """The controller that is ready."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            for name in CONTROLLERS:
                if await self._is_ready(name):
                    return name
            await asyncio.sleep(0.1)
        raise TimeoutError(f"no controller leads: {self.logs()}")

    async def answering(self, name: str) -> None:
        """Returns when the process serves its socket, whether it is ready or not."""
        async with CsiClient(self.socket(name), timeout_s=PATIENCE_S) as csi:
            await csi.wait_ready(PATIENCE_S)

    async def _is_ready(self, name: str) -> bool:
        try:
            async with CsiClient(self.socket(name), timeout_s=2.0) as csi:
                return await csi.probe()
        except CallFailed:
            return False

    async def node_ready(self, name: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not await self._is_ready(name):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} is not ready: {self.log(name)}")
            await asyncio.sleep(0.1)

    async def whole(self) -> None:
        """Returns when all nodes are ready and the controller that leads places volumes on every disk."""
        for name in NODES:
            await self.node_ready(name)
        deadline = time.monotonic() + PATIENCE_S
        while await self.ask(lambda csi: csi.capacity()) < 25 << 30:  # a thin pool of 2 GiB takes 20 GiB of volumes
            if time.monotonic() > deadline:
                raise TimeoutError(f"a disk is not used: {self.logs()}")
            await asyncio.sleep(0.05)

    async def ask(self, call: Callable[[CsiClient], Awaitable[T]]) -> T:
        """Asks the controller that leads, again as sidecars do, until it answers for good."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                async with CsiClient(self.socket(await self.leader()), timeout_s=CALL_S) as csi:
                    return await call(csi)
            except CallFailed as error:
                if error.code not in AGAIN or time.monotonic() > deadline:
                    raise AssertionError(f"{error}\n{self.logs()}") from error
            await asyncio.sleep(0.2)

    async def kubectl_delete(self, volume: str, gate: Gate) -> None:
        """As an administrator does."""
        path = f"/apis/quarry.storage/v1alpha1/volumes/{volume}"
        await asyncio.to_thread(gate.plane.request, "DELETE", path)

    @asynccontextmanager
    async def opened(self, volume: str, node: str) -> AsyncIterator[initiator.Controller]:
        """The volume published to `node`, connected over NVMe/TCP; unpublished afterwards."""
        context = await self.ask(lambda csi: csi.publish(volume, node, block=True))
        host = await initiator.connect(context["address"], int(context["port"]), context["nqn"], context["hostNqn"])
        try:
            yield host
        finally:
            await host.close()
            await self.ask(lambda csi: csi.unpublish(volume, node))
