"""Disks that grow further than their pool can follow, that shrink, and pools that could not be loaded at first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from agent.model import DiskPhase
from agent.pools.disk_conditions import attention
from agent.pools.why import Why
from tests.contract.targets import Target
from tests.disks.loops import LoopDisk
from tests.disks.test_hotplug import WELL, host, said_of

MIB, GIB = 1 << 20, 1 << 30
LIMIT = 32728 * MIB
"""What one page of the mask of clusters reaches, at 1 MiB clusters (measured: docs/decisions/0013)."""


async def test_a_disk_that_grows_too_far_is_served_as_before(
    start_node: Any, spdk_tgt: Target, make_disk: Callable[..., LoopDisk]
) -> None:
    disk = make_disk()
    async with start_node() as node:
        await node.quarry("claim", disk.device, "--yes")
        before = await node.until(disk, lambda disk: disk.status.phase is DiskPhase.READY)
        volume = await node.csi.create_volume("v", 64 * MIB, {"tier": "ssd"})
        async with host(node, volume) as connected:
            await connected.write(1, 0, b"before".ljust(4096))
            disk.grow(LIMIT + GIB)
            told = await node.until(disk, lambda disk: attention(disk, Why.GROWTH_LIMIT) is not None)
            assert told.status.phase is DiskPhase.READY
            assert told.status.pool.size_bytes == before.status.pool.size_bytes
            condition = attention(told, Why.GROWTH_LIMIT)
            assert condition is not None and f"{LIMIT / GIB:.6g} GiB" in condition.message
            written = node.changes(told.meta.name)
            for number in range(5):  # neither stops serving nor looks again and again
                extra = await node.csi.create_volume(f"more-{number}", 16 * MIB, {"tier": "ssd"})
                await node.csi.delete_volume(extra)
            assert await connected.read(1, 0, 4096) == b"before".ljust(4096)
            assert await said_of(node, volume) == WELL
            assert node.changes(told.meta.name) - written <= 2
            assert "is not usable" not in node.log()
        spdk_tgt.kill()
        spdk_tgt.start()
        await node.until_recovered(1)
        async with host(node, volume) as connected:
            assert await connected.read(1, 0, 4096) == b"before".ljust(4096)


async def test_a_disk_that_shrinks_is_called_that(start_node: Any, make_disk: Callable[..., LoopDisk]) -> None:
    disk = make_disk(size_bytes=3 * GIB)
    async with start_node() as node:
        await node.quarry("claim", disk.device, "--yes")
        await node.until(disk, lambda disk: disk.status.phase is DiskPhase.READY)
        volume = await node.csi.create_volume("v", 64 * MIB, {"tier": "ssd"})
        disk.grow(2 * GIB)
        disk.tell()
        told = await node.until(disk, lambda disk: attention(disk, Why.SHRUNK) is not None)
        assert told.status.phase is DiskPhase.READY, "what is there is served"
        written = node.changes(told.meta.name)
        assert "smaller than its pool" in await said_of(node, volume)
        assert await node.csi.capacity({"tier": "ssd"}) == 0
        await asyncio.sleep(2)  # a time in which nothing may happen
        assert node.changes(told.meta.name) - written <= 2, node.log()[-3000:]
        disk.grow(3 * GIB)
        disk.tell()
        await node.until(disk, lambda disk: attention(disk, Why.SHRUNK) is None)
        assert await said_of(node, volume) == WELL
        assert await node.csi.capacity({"tier": "ssd"}) > 0


async def test_a_pool_that_could_not_be_loaded_is_tried_again(
    start_node: Any, spdk_tgt: Target, make_disk: Callable[..., LoopDisk]
) -> None:
    disk = make_disk()
    async with start_node() as node:
        await node.quarry("claim", disk.device, "--yes")
        await node.until(disk, lambda disk: disk.status.phase is DiskPhase.READY)
        volume = await node.csi.create_volume("v", 64 * MIB, {"tier": "ssd"})
        spdk_tgt.kill()
        disk.grow(GIB)
        disk.tell()
        spdk_tgt.start()
        failed = await node.until(disk, lambda disk: disk.status.phase is DiskPhase.FAILED)
        assert "smaller than its pool" in failed.status.message
        assert "now holds none" not in failed.status.message
        disk.grow(2 * GIB)
        disk.tell()
        await node.until(disk, lambda disk: disk.status.phase is DiskPhase.READY, timeout_s=40)
        assert await said_of(node, volume) == WELL
