from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.config import Settings, load_settings
from agent.csi.client import CsiClient
from agent.daemon import Standalone
from agent.model import Disk
from agent.store.local import LocalStore, open_local
from tests.contract.targets import Target, find_spdk_tgt, free_port
from tests.disks.loops import LoopDisk

NODE = "node-a"
FAST_S = 2.0
"""Within this time everything follows what happens to a disk."""


@pytest.fixture(scope="session")
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
    if os.geteuid() != 0 or shutil.which("losetup") is None or not Path("/dev/loop-control").exists():
        pytest.skip("needs root, losetup and loop devices")
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
    """An agent in this process, its CSI and its database."""

    def __init__(self, settings: Settings, agent: Standalone, csi: CsiClient, store: LocalStore) -> None:
        self.settings = settings
        self.agent = agent
        self.csi = csi
        self.store = store

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
            assert time.monotonic() < deadline, disk
            await asyncio.sleep(0.02)


@pytest.fixture
async def start_node(folder: Path, spdk_tgt: Target) -> AsyncIterator[Callable[..., Any]]:
    """Starts agents on the real target. What they leave there is removed by a restart of the target."""

    @asynccontextmanager
    async def start(name: str = NODE, target: Target = spdk_tgt, **more: Any) -> AsyncIterator[Node]:
        settings = load_settings(
            node_name=name,
            state_dir=folder / name,
            csi_endpoint=f"unix://{folder}/{name}.sock",
            nvmf_port=free_port(),
            spdk_socket=target.socket_path,
            **{"disks": {"loop_devices": True}, **more},
        )
        async with Standalone(settings) as agent, CsiClient(settings.csi_endpoint) as csi:
            store = await open_local(settings.state_dir / "quarry.db")
            try:
                await agent.wait_ready(30)
                yield Node(settings, agent, csi, store)
            finally:
                await store.close()

    yield start
    spdk_tgt.restart()
