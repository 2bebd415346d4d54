from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.config.settings import Settings, load_settings
from agent.csi.client import CsiClient
from agent.daemon.standalone import Standalone
from tests.contract.targets import Target, find_spdk_tgt, free_port

NODE = "node-a"


@dataclass
class Machine:
    """`quarry standalone` with one file disk per tier, and a client of its CSI socket."""

    folder: Path
    settings: Settings
    agent: Standalone
    client: CsiClient


@pytest.fixture
async def machine() -> AsyncIterator[Machine]:
    """On the embedded target."""
    async with _machine(None) as machine:
        yield machine


@pytest.fixture(params=["embedded", "real"])
async def any_machine(request: pytest.FixtureRequest) -> AsyncIterator[Machine]:
    """On the embedded target and, where there is one, on a real spdk_tgt."""
    if request.param == "embedded":
        async with _machine(None) as machine:
            yield machine
        return
    if find_spdk_tgt() is None:
        pytest.skip("spdk_tgt not found (SPDK_TGT or PATH)")
    target = Target("real", core=1)
    try:
        await asyncio.to_thread(target.start)
        async with _machine(target.socket_path) as machine:
            yield machine
    finally:
        target.close()


@asynccontextmanager
async def _machine(spdk_socket: Path | None) -> AsyncIterator[Machine]:
    folder = Path(tempfile.mkdtemp(prefix="q-csi-", dir="/tmp"))
    endpoint = f"unix://{folder}/csi.sock"
    settings = load_settings(
        node_name=NODE,
        state_dir=folder / "state",
        csi_endpoint=endpoint,
        spdk_socket=spdk_socket,
        nvmf_port=free_port(),
        file_disks=tuple(f"{folder}/{tier}.img:2GiB:{tier}" for tier in ("nvme", "ssd", "hdd")),
        mount_roots=(folder / "pods",),
        max_volumes_per_node=8,
    )
    (folder / "pods").mkdir()
    try:
        async with Standalone(settings) as agent, CsiClient(endpoint, timeout_s=30) as client:
            await agent.wait_ready(30)
            yield Machine(folder, settings, agent, client)
    finally:
        left = _sweep(folder)
    assert not left, f"left behind: {left}"


def _sweep(folder: Path) -> list[str]:
    """Remove the folder and whatever a failed test left of it in the kernel; returns what that was."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    mounts = [each for each in mounts if each.startswith(f"{folder}{os.sep}")]
    for each in reversed(mounts):
        subprocess.run(["umount", "-l", each], check=False, timeout=10)
    loops = [
        f"/dev/{file.parts[3]}" for file in Path("/sys/block").glob("loop*/loop/backing_file") if _is_in(folder, file)
    ]
    for device in loops:
        subprocess.run(["losetup", "-d", device], check=False, timeout=10)
    shutil.rmtree(folder, ignore_errors=True)
    return mounts + loops


def _is_in(folder: Path, backing_file: Path) -> bool:
    try:
        return backing_file.read_text().startswith(f"{folder}{os.sep}")
    except OSError:  # detached meanwhile
        return False
