"""What the crash matrix is about: a target, the gate before it, and an agent that can be killed at any point."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from agent.csi.client import CallFailed, CsiClient
from tests.contract.targets import ADDRESS, DIE_WITH_US, Target, free_port

from .gate import Gate
from .machine import NODE, REPEAT
from .tripwire import Tripwire

PATIENCE_S = 30.0
TICK_S = 0.003
CONFIG = """
rpc: {heartbeat_interval_s: 3600.0}
reconcile: {audit_interval_s: 3600.0}
pool: {deletions_linger_s: 0.001}
"""
"""Nothing happens by itself while calls are counted."""

DISK_SIZES = ("2GiB:ssd",)


class Subject:
    """The processes over one folder. `close` ends all of them and takes off what they left in the kernel."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.target = Target(kind, core=1)
        self.folder = self.target.directory
        self.state_dir = self.folder / "agent"
        self.pods = self.folder / "pods"
        self.pods.mkdir()
        self.endpoint = f"unix://{self.folder}/csi.sock"
        self.port = free_port()
        self.wire = Tripwire(self.folder / "wire")
        self.gate = Gate(self.target.socket_path, self.folder / "gate.sock", self.kill_agent)
        self.trials = 0
        self.dirty = False
        self._agent: int | None = None
        self._launcher: subprocess.Popen[str] | None = None
        (self.folder / "config.yaml").write_text(CONFIG)

    def start(self) -> None:
        """Start target and launcher; the agent comes with `start_agent`."""
        self.target.start()
        argv = [*DIE_WITH_US, sys.executable, "-m", "tests.crash.launcher", str(self.folder / "wire")]
        argv += [str(self.state_dir / "node"), str(self.pods)]
        with (self.folder / "launcher.log").open("ab") as log:
            self._launcher = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1
            )
        self._hear("ready")

    def start_agent(self) -> None:
        assert self._launcher is not None
        assert self._launcher.stdin is not None
        argv = ["standalone", "--state-dir", str(self.state_dir), "--csi-endpoint", self.endpoint]
        argv += [
            "--node-name",
            NODE,
            "--spdk-socket",
            str(self.gate.path),
            "--config",
            str(self.folder / "config.yaml"),
        ]
        argv += ["--nvmf-address", ADDRESS, "--nvmf-port", str(self.port), "--mount-root", str(self.pods)]
        for index, size in enumerate(DISK_SIZES):
            argv += ["--file-disk", f"{self.folder}/d{index}.img:{size}"]
        self._launcher.stdin.write(json.dumps({"argv": argv, "log": str(self.folder / "agent.log")}) + "\n")
        self._agent = int(self._hear())

    def _hear(self, expected: str = "") -> str:
        assert self._launcher is not None
        assert self._launcher.stdout is not None
        said = self._launcher.stdout.readline().strip()
        if not said or (expected and said != expected):
            raise RuntimeError(f"the launcher failed:\n{(self.folder / 'launcher.log').read_text()[-4000:]}")
        return said

    @property
    def alive(self) -> bool:
        return self._agent is not None and _alive(self._agent)

    async def kill_agent(self) -> None:
        """SIGKILL; returns when the process is gone."""
        if self._agent is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._agent, signal.SIGKILL)
            await self.wait_dead()

    async def wait_dead(self, timeout_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + timeout_s
        while self.alive:
            if time.monotonic() > deadline:
                raise TimeoutError("the agent did not die")
            await asyncio.sleep(TICK_S)
        self._agent = None

    def log(self) -> str:
        path = self.folder / "agent.log"
        return path.read_text(errors="replace") if path.exists() else "(no log)"

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """The gate is open and an agent runs, to be killed at the end."""
        async with self.gate.serving():
            try:
                self.start_agent()
                yield
            finally:
                await self.kill_agent()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[CsiClient]:
        """A client of the agent that was started last, as soon as that answers."""
        path = self.endpoint.removeprefix("unix://")
        deadline = time.monotonic() + PATIENCE_S
        while not _accepts(path):
            if not self.alive:
                raise RuntimeError(f"the agent died at its start:\n{self.log()[-4000:]}")
            assert time.monotonic() < deadline, "the agent does not serve CSI"
            await asyncio.sleep(TICK_S)
        async with CsiClient(self.endpoint, timeout_s=PATIENCE_S) as client:
            yield client

    def close(self) -> None:
        for process in (self._agent, self._launcher.pid if self._launcher else None):
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        if self._launcher is not None:
            self._launcher.communicate()
        _sweep(self.folder)
        self.target.close()


async def ready(client: CsiClient) -> None:
    """Return when the target serves."""
    deadline = time.monotonic() + PATIENCE_S
    while not await again(client.probe):
        assert time.monotonic() < deadline, "the target never became ready"
        await asyncio.sleep(TICK_S)


async def again(method: Any, *args: Any, **kwargs: Any) -> Any:
    """Call until the answer is a final one, as orchestrators do."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await method(*args, **kwargs)
        except CallFailed as error:
            if error.code not in REPEAT - {grpc.StatusCode.RESOURCE_EXHAUSTED} or time.monotonic() > deadline:
                raise
            await asyncio.sleep(2 * TICK_S)


def _alive(pid: int) -> bool:
    """Whether a process runs that is not our child, so that nobody waits for it here."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        return not select.select([descriptor], [], [], 0)[0]
    finally:
        os.close(descriptor)


def _accepts(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


def _sweep(folder: Path) -> None:
    """Take off what a failed trial left in the kernel."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for each in reversed([each for each in mounts if each.startswith(f"{folder}{os.sep}")]):
        subprocess.run(["umount", "-l", each], check=False, timeout=10)
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if file.read_text().startswith(f"{folder}{os.sep}"):
                subprocess.run(["losetup", "-d", f"/dev/{file.parts[3]}"], check=False, timeout=10)
