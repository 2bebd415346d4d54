from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.csi.client import CsiClient
from agent.csi.server import build_server
from agent.model import Meta, StorageNode, StorageNodeStatus

from .fake_snapshots import MemoryGroups, MemorySnapshots
from .fakes import MemoryNode, MemoryVolumes

THIS = StorageNode(Meta("node-a"), status=StorageNodeStatus(zone="rack-1", max_volumes=7))


@dataclass
class Driver:
    """A running driver over in-memory volumes, and a client connected to its socket."""

    endpoint: str
    socket: Path
    volumes: MemoryVolumes
    node: MemoryNode
    client: CsiClient


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory whose path leaves room for a socket name."""
    folder = Path(tempfile.mkdtemp(prefix="q-csi-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
async def driver(short_dir: Path) -> AsyncIterator[Driver]:
    endpoint = f"unix://{short_dir}/csi.sock"
    volumes, node = MemoryVolumes(), MemoryNode()
    snapshots = MemorySnapshots(volumes)
    server = build_server(volumes, volumes, snapshots, MemoryGroups(snapshots), node, THIS, endpoint)
    await server.start()
    async with CsiClient(endpoint, timeout_s=10) as client:
        yield Driver(endpoint, short_dir / "csi.sock", volumes, node, client)
    await server.stop(0)
