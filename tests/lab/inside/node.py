"""A storage node in the machine: `quarry standalone` as a process, with its embedded target or beside a real one."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Self

from grpc import StatusCode

from agent.csi.client import CallFailed, CsiClient
from agent.csi.pb import csi_pb2 as csi
from agent.host.nvme_host import NvmeHost
from agent.volumes.rules.names import volume_nqn
from tests.contract.targets import ADDRESS, Target, free_port

from .tools import run, until

NAME = "lab"
MIB = 1 << 20
START_S = 180.0
"""Emulated processors take half a minute just to import everything."""


class Node:
    """`kind` is "embedded": the agent's own child; or "real": an spdk_tgt with a life of its own."""

    def __init__(
        self,
        kind: str,
        *,
        file_disk: str = "6GiB:nvme",
        target_args: Sequence[str] | None = None,
        folder: Path | None = None,
        config: str = "{}",
    ) -> None:
        """`target_args` are given to the real target in place of those by which it needs no hugepages.

        `folder`: that of a node which was there before, or will be again. `config`: YAML of its settings.
        """
        self.kind = kind
        self._file_disk = file_disk
        self.folder = folder or Path(tempfile.mkdtemp(prefix="ql-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "config.yaml").write_text(config)
        self.pods = self.folder / "pods"
        self.pods.mkdir(parents=True, exist_ok=True)
        self.endpoint = f"unix://{self.folder}/csi.sock"
        self.host = NvmeHost()
        self._port = free_port()
        self._target = Target("real", memory=target_args) if kind == "real" else None
        self._agent: subprocess.Popen[bytes] | None = None

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Started, and at the end closed, with what the agent said shown."""
        try:
            self.start()
            yield self
        finally:
            print(f"--- agent log ({self.kind})\n{self.log()[-20000:]}")
            self.close()

    @asynccontextmanager
    async def served(self) -> AsyncIterator[CsiClient]:
        """Its CSI, once it is ready."""
        async with CsiClient(self.endpoint, timeout_s=120) as client:
            await self.ready(client)
            yield client

    def start(self) -> None:
        """Start the processes that do not run."""
        if self._target is not None:
            self._target.start()
        self.start_agent()

    def start_agent(self) -> None:
        argv = [sys.executable, "-m", "agent.cli.main", "standalone", "--node-name", NAME]
        argv += ["--config", str(self.folder / "config.yaml")]
        argv += ["--state-dir", str(self.folder / "state"), "--csi-endpoint", self.endpoint]
        argv += ["--file-disk", f"{self.folder}/disk:{self._file_disk}", "--mount-root", str(self.pods)]
        argv += ["--nvmf-address", ADDRESS, "--nvmf-port", str(self._port)]
        if self._target is not None:
            argv += ["--spdk-socket", str(self._target.socket_path)]
        with (self.folder / "agent.log").open("ab") as log:
            self._agent = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill_agent(self) -> None:
        """SIGKILL; the embedded target dies with it."""
        assert self._agent is not None
        self._agent.kill()
        self._agent.wait()

    def kill_target(self, *, again: bool = True) -> None:
        """SIGKILL the target only; the embedded one is started again by the agent, the real one here, if wanted."""
        if self._target is None:
            os.kill(self.target_pid, signal.SIGKILL)
            return
        self._target.kill()
        if again:
            self._target.start()

    def start_target(self) -> None:
        """The real target, after `kill_target(again=False)`."""
        assert self._target is not None
        self._target.start()

    @property
    def socket(self) -> Path:
        """JSON-RPC socket of the target."""
        return self._target.socket_path if self._target is not None else self.folder / "state" / "target.sock"

    @property
    def target_pid(self) -> int:
        if self._target is not None:
            return self._target.pid
        assert self._agent is not None
        children = Path(f"/proc/{self._agent.pid}/task/{self._agent.pid}/children").read_text().split()
        (pid,) = [pid for pid in children if b"\0target\0" in Path("/proc", pid, "cmdline").read_bytes()]
        return int(pid)

    @contextmanager
    def frozen_target(self) -> Iterator[None]:
        """A target that answers nothing for the time of the block."""
        pid = self.target_pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        """End it all, by force, and remove what it made."""
        if self._agent is not None and self._agent.poll() is None:
            self._agent.send_signal(signal.SIGTERM)
            try:
                self._agent.wait(60)
            except subprocess.TimeoutExpired:
                self.kill_agent()
        if self._target is not None:
            self._target.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def log(self) -> str:
        return (self.folder / "agent.log").read_text(errors="replace")

    async def ready(self, client: CsiClient) -> None:
        """Return when CSI answers and the target serves."""
        await client.wait_ready(START_S)
        deadline = time.monotonic() + START_S
        while not await client.probe():
            assert time.monotonic() < deadline, self.log()[-4000:]
            await asyncio.sleep(0.2)

    # --- what the kernel has of a volume --------------------------------------------------------------------------

    def states(self, volume_id: str) -> list[str]:
        """The kernel's word for each connection of the volume."""
        return [found.state for found in self.host.controllers(volume_nqn(volume_id))]

    def device(self, volume_id: str) -> Path:
        found = self.host.namespaces(volume_nqn(volume_id))
        assert len(found) == 1, found
        return Path("/dev", found[0].name)

    def kernel_size(self, volume_id: str) -> int:
        return self.host.namespaces(volume_nqn(volume_id))[0].size_bytes


class Pod:
    """One volume on its way to a pod and back, as kubelet and the sidecars take it. `fs_type` empty: as raw block."""

    def __init__(
        self,
        node: Node,
        client: CsiClient,
        name: str,
        *,
        fs_type: str = "",
        size_bytes: int,
        frontend: str = "nvme-tcp",
        tier: str = "",
    ) -> None:
        self.node = node
        self.client = client
        self.name = name
        self.size_bytes = size_bytes
        self.frontend = frontend
        self.parameters = {"frontend": frontend} | ({"tier": tier} if tier else {})
        self.block = not fs_type
        self.fs_type = fs_type or "ext4"
        self.staging = node.pods / name / "staging"
        self.target = node.pods / name / "target"
        self.volume_id = ""
        self.device = Path()

    async def create(self, source: csi.VolumeContentSource | None = None) -> None:
        self.target.parent.mkdir(exist_ok=True)
        self.volume_id = await self.client.create_volume(
            self.name,
            self.size_bytes,
            self.parameters,
            block=self.block,
            fs_type=self.fs_type,
            source=source,
        )

    async def attach(self) -> None:
        await self.client.publish(self.volume_id, NAME, block=self.block)
        await self.client.stage(self.volume_id, self.staging, block=self.block, fs_type=self.fs_type)
        await self.client.node_publish(
            self.volume_id, self.staging, self.target, block=self.block, fs_type=self.fs_type
        )
        self.device = _device_at(self.target)

    @property
    def file(self) -> Path:
        """Where fio may write: a file in the filesystem, or the device."""
        return self.target if self.block else self.target / "fio"

    def kernel_size(self) -> int:
        return int(Path("/sys/block", self.device.name, "size").read_text()) * 512

    async def served(self) -> None:
        """Return when I/O goes through to a target."""
        if self.frontend == "nvme-tcp":
            await until(lambda: self.node.states(self.volume_id), lambda states: states == ["live"])

    async def check(self) -> None:
        """Have the filesystem's own checker look at it, where it is mounted nowhere; it finds and changes nothing."""
        checkers = {"ext4": ["e2fsck", "-f", "-n"], "xfs": ["xfs_repair", "-n"], "btrfs": ["btrfs", "check"]}
        if self.block:
            return
        self.block = True
        try:
            await self.attach()
            await run(*checkers[self.fs_type], self.device)
            await self.detach()
        finally:
            self.block = False

    async def detach(self) -> None:
        await self.client.node_unpublish(self.volume_id, self.target)
        await self.client.unstage(self.volume_id, self.staging)
        await self.client.unpublish(self.volume_id, NAME)

    async def start(self, source: csi.VolumeContentSource | None = None, timeout_s: float = 180) -> None:
        """A disk that could not be zeroed before its pool was made gives room as it is zeroed, and says so."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                await self.create(source)
                break
            except CallFailed as error:
                progress = re.search(r"gives its space out as it is zeroed \(\d+ %: \d+ of \d+ MiB", str(error))
                if error.code is not StatusCode.RESOURCE_EXHAUSTED or not progress or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.5)
        await self.attach()

    async def sweep(self) -> list[str]:
        """After a failed test: take away by force what it left. Returns what that was."""
        left = [each for each in (self.target, self.staging) if _mounted(each)]
        nqn = volume_nqn(self.volume_id) if self.volume_id else ""
        connected = self.node.states(self.volume_id) if nqn else []
        if connected:
            await self.node.host.disconnect(nqn)
        for each in left:
            await run("umount", "-l", each)
        return [str(each) for each in left] + connected

    async def gone(self) -> None:
        """Nothing of the volume is left on this machine."""
        assert self.node.states(self.volume_id) == []
        assert not (self.node.folder / "state/node/ublk" / f"{self.volume_id}.json").exists()
        await until(lambda: self.frontend == "ublk" and self.device.exists(), lambda there: not there)
        await until(lambda: self.node.host.namespaces(volume_nqn(self.volume_id)), lambda found: not found)
        assert not _mounted(self.staging)
        assert not _mounted(self.target)


def _device_at(target: Path) -> Path:
    """The block device that is mounted at `target`, or bound there."""
    found = target.stat()
    if stat.S_ISBLK(found.st_mode):
        uevent = Path(f"/sys/dev/block/{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}/uevent").read_text()
        return Path("/dev", next(line[8:] for line in uevent.splitlines() if line.startswith("DEVNAME=")))
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return next(Path(line[0]) for line in lines if line[1] == str(target))


def _mounted(path: Path) -> bool:
    return any(line.split()[1] == str(path) for line in Path("/proc/self/mounts").read_text().splitlines())
