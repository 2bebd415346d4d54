from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.config import Settings, load_settings
from agent.csi.client import CsiClient
from agent.daemon import Standalone

NODE = "node-a"


@dataclass
class Machine:
    """`quarry standalone` on the embedded target with one file disk per tier, and a client of its CSI socket."""

    folder: Path
    settings: Settings
    agent: Standalone
    client: CsiClient


@pytest.fixture
async def machine() -> AsyncIterator[Machine]:
    folder = Path(tempfile.mkdtemp(prefix="q-csi-", dir="/tmp"))
    endpoint = f"unix://{folder}/csi.sock"
    settings = load_settings(
        node_name=NODE,
        state_dir=folder / "state",
        csi_endpoint=endpoint,
        nvmf_port=_free_port(),
        file_disks=tuple(f"{folder}/{tier}.img:2GiB:{tier}" for tier in ("nvme", "ssd", "hdd")),
        mount_roots=(folder / "pods",),
    )
    (folder / "pods").mkdir()
    try:
        async with Standalone(settings) as agent, CsiClient(endpoint, timeout_s=30) as client:
            await agent.wait_ready(30)
            yield Machine(folder, settings, agent, client)
    finally:
        left = _mounts_below(folder)
        if not left:
            shutil.rmtree(folder, ignore_errors=True)
    assert not left, f"left mounted: {left}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _mounts_below(folder: Path) -> list[str]:
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [each for each in mounts if each.startswith(f"{folder}{os.sep}")]
