"""What a disk held before it was claimed is shown by no volume."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.model import DiskPhase
from agent.nvmf import initiator
from tests.disks import loops
from tests.disks.conftest import NODE, Node
from tests.disks.loops import LoopDisk

MIB = 1 << 20
SECRET = (b"name,diagnosis,2019\n" * 205)[:4096]
AT = MIB // 2
SIZE = 1 << 30
CLUSTERS = 800


@pytest.fixture
def disk(folder: Path) -> Iterator[LoopDisk]:
    """A loop device: the kernel zeroes it at once."""
    if why := loops.missing():
        pytest.skip(why)
    made = LoopDisk(folder / "d0.img", SIZE)
    made.plug()
    try:
        yield made
    finally:
        made.close()


def leave_data(disk: LoopDisk) -> None:
    """What a look at both ends and at places between does not find: something in the middle of every MiB."""
    with Path(disk.device).open("r+b", buffering=0) as opened:
        for at in range(1, SIZE // MIB - 1):
            opened.seek(at * MIB + AT + 4096)
            opened.write(SECRET)


async def test_no_volume_shows_what_a_disk_held_before_its_claim(start_node: Any, disk: LoopDisk) -> None:
    leave_data(disk)
    async with start_node() as node:
        await node.want(disk, claimed=True)
        await node.until(disk, lambda found: found.status.phase is DiskPhase.READY, 60)
        volume = await created(node, CLUSTERS * MIB)
        to = await node.csi.publish(volume, NODE)
        host = await initiator.connect(to["address"], int(to["port"]), to["nqn"], to["hostNqn"])
        shown = 0
        for at in range(CLUSTERS):
            await host.write(1, at * MIB, bytes(4096))
            held = await host.read(1, at * MIB, MIB)
            shown += held.count(0) != len(held)
        await host.close()
        assert shown == 0
        await node.csi.unpublish(volume, NODE)
        await node.csi.delete_volume(volume)


async def until_room(node: Node, size_bytes: int) -> None:
    deadline = time.monotonic() + 60
    while await node.csi.capacity({"tier": "ssd", "provisioning": "thick"}) < size_bytes:
        assert time.monotonic() < deadline, "the pool did not grow"
        await asyncio.sleep(0.1)


async def created(node: Node, size_bytes: int) -> str:
    await until_room(node, size_bytes)
    return await node.csi.create_volume("v", size_bytes, {"tier": "ssd"})
