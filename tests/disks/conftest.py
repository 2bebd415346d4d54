from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.csi.client import CallFailed, CsiClient
from agent.errors import Conflict
from agent.model import Disk, StorageNode, TargetState
from agent.store.local import LocalStore, open_local
from tests.contract.targets import DIE_WITH_US, Target, find_spdk_tgt, free_port
from tests.disks import loops
from tests.disks.loops import LoopDisk

NODE = "node-a"
FAST_S = 2.0
"""Within this time everything follows what happens to a disk."""


@pytest.fixture(scope="package")
def spdk_tgt() -> Iterator[Target]:
    """One real target for all tests here; each leaves it as it was."""
    if find_spdk_tgt() is None:
        pytest.skip("spdk_tgt not found: block devices need the real one")
    target = Target("real")
    target.start()
    yield target
    target.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: UNIX sockets lie in it."""
    made = Path(tempfile.mkdtemp(prefix="qd-", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def make_disk(folder: Path) -> Iterator[Callable[..., LoopDisk]]:
    """Makes disks, plugged in; they are taken out at the end."""
    if why := loops.missing():
        pytest.skip(why)
    made: list[LoopDisk] = []

    def make(name: str = "d0", size_bytes: int = 2 << 30) -> LoopDisk:
        disk = LoopDisk(folder / f"{name}.img", size_bytes)
        made.append(disk)
        disk.plug()
        return disk

    yield make
    for disk in made:
        disk.close()


class Node:
    """An agent as a process, its CSI, and its database as another process sees it."""

    def __init__(self, name: str, folder: Path, socket: Path | None, disks: dict[str, Any]) -> None:
        self.state_dir = folder / name
        self.endpoint = f"unix://{folder}/{name}.sock"
        self.csi = CsiClient(self.endpoint, timeout_s=30)
        self.store: LocalStore
        self._log = folder / f"{name}.log"
        config = folder / f"{name}.yaml"
        config.write_text(json.dumps({"disks": {"loop_devices": True, **disks}}))
        self._argv = ["standalone", "--node-name", name, "--state-dir", str(self.state_dir), "--config", str(config)]
        self._argv += ["--csi-endpoint", self.endpoint, "--nvmf-port", str(free_port())]
        self._argv += ["--spdk-socket", str(socket)] if socket else []
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start the agent; returns when it serves."""
        with self._log.open("ab") as log:
            argv = [*DIE_WITH_US, sys.executable, "-m", "agent.cli.main", *self._argv]
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: ASYNC220
        deadline = time.monotonic() + 30
        while not await self._serves():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            await asyncio.sleep(0.02)

    async def _serves(self) -> bool:
        try:
            return await self.csi.probe()
        except CallFailed:
            return False

    def kill(self) -> None:
        """SIGKILL, as a crash of the agent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Meanwhile the agent does nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def changes(self, disk: str) -> int:
        """How often the record of a disk was written."""
        with closing(sqlite3.connect(f"file:{self.state_dir}/quarry.db?mode=ro", uri=True)) as database:
            found: int = database.execute("SELECT count(*) FROM changes WHERE name = ?", (disk,)).fetchone()[0]
        return found

    async def quarry(self, *args: str) -> subprocess.CompletedProcess[str]:
        """`quarry disks ...` beside the agent."""
        argv = [sys.executable, "-m", "agent.cli.main", "disks", *args, "--state-dir", str(self.state_dir)]
        return await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=60, check=False)

    async def want(self, loop: LoopDisk, **spec: Any) -> None:
        """Change what is wanted of a disk."""
        while True:
            disk = await self.until(loop, lambda disk: True)
            try:
                await self.store.update(replace(disk, spec=replace(disk.spec, **spec)))
            except Conflict:
                continue
            return

    async def until_recovered(self, disks: int, timeout_s: float = 20.0) -> None:
        """Return when the log tells of a target with so many disks that was brought up, and that one serves."""
        deadline = time.monotonic() + timeout_s
        while f"target ready: {disks} disks" not in self.log() or not await self._serves():
            assert time.monotonic() < deadline, self.log()[-3000:]
            await asyncio.sleep(0.02)

    async def until_mode(self, mode: str, timeout_s: float = 20.0) -> None:
        """Return when a target in this mode serves."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = await self.store.get(StorageNode, NODE)
            if found and found.status.target_mode == mode and found.status.target_state is TargetState.READY:
                return
            assert time.monotonic() < deadline, f"{found}\n{self.log()[-3000:]}"
            await asyncio.sleep(0.02)

    async def until_listed(self, volumes: set[str], timeout_s: float = 20.0) -> None:
        """Return when these are the volumes there are."""
        deadline = time.monotonic() + timeout_s
        while (found := {each.volume.volume_id for each in (await self.csi.list_volumes()).entries}) != volumes:
            assert time.monotonic() < deadline, f"{found}\n{self.log()[-3000:]}"
            await asyncio.sleep(0.02)

    async def disk(self, loop: LoopDisk) -> Disk | None:
        """The record of the disk on that file."""
        found = [each for each in await self.store.list(Disk) if each.status.serial == str(loop.file)]
        assert len(found) < 2
        return found[0] if found else None

    async def until(self, loop: LoopDisk, wanted: Callable[[Disk], bool], timeout_s: float = 20.0) -> Disk:
        """The record of the disk, once it is as wanted."""
        deadline = time.monotonic() + timeout_s
        while True:
            disk = await self.disk(loop)
            if disk is not None and wanted(disk):
                return disk
            assert time.monotonic() < deadline, f"{disk}\n{self.log()[-3000:]}"
            await asyncio.sleep(0.02)


@pytest.fixture
async def start_node(folder: Path, spdk_tgt: Target) -> AsyncIterator[Callable[..., Any]]:
    """Starts agents on the real target. What they leave there is removed by a restart of the target."""

    @asynccontextmanager
    async def start(name: str = NODE, target: Any = spdk_tgt, **disks: Any) -> AsyncIterator[Node]:
        node = Node(name, folder, target.socket_path if target else None, disks)
        try:
            await node.start()
            node.store = await open_local(node.state_dir / "quarry.db")
            try:
                yield node
            finally:
                await node.store.close()
        finally:
            node.kill()
            await node.csi.close()

    yield start
    spdk_tgt.restart()
