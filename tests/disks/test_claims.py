"""Disks of the machine become pools when they are claimed, and blank again when they are released."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agent.model import Disk, DiskPhase
from tests.disks.loops import LoopDisk

MIB = 1 << 20


def ready(disk: Disk) -> bool:
    return disk.status.phase is DiskPhase.READY


def failed(disk: Disk) -> bool:
    return disk.status.phase is DiskPhase.FAILED


def available(disk: Disk) -> bool:
    return disk.status.phase is DiskPhase.AVAILABLE


async def test_a_record_that_is_deleted_while_its_disk_is_in_service_is_made_again(
    start_node: Any, make_disk: Callable[..., LoopDisk]
) -> None:
    disk = make_disk()
    async with start_node() as node:
        await node.want(disk, claimed=True)
        before = await node.until(disk, ready)
        volume = await node.csi.create_volume("v", 16 * MIB, {"tier": "ssd"})
        await node.store.delete(Disk, before.meta.name)
        again = await node.until(disk, lambda disk: ready(disk) and disk.meta.created_at > before.meta.created_at)
        assert (again.status.pool.uuid, again.spec.claimed) == (before.status.pool.uuid, True)
        assert await node.csi.create_volume("v", 16 * MIB, {"tier": "ssd"}) == volume
        await node.csi.delete_volume(volume)
        await node.want(disk, claimed=False)
        await node.until(disk, available)
        assert disk.is_blank()


async def test_no_disk_is_claimed_unless_somebody_says_so(start_node: Any, make_disk: Callable[..., LoopDisk]) -> None:
    disk = make_disk()
    async with start_node() as node:
        found = await node.until(disk, available)
        assert found.spec.claimed is None
        assert found.status.eligible
        assert found.status.node == "node-a"
        await node.want(disk, claimed=True)
        found = await node.until(disk, ready)
        assert found.status.pool.size_bytes > 1900 * MIB
        volume = await node.csi.create_volume("v", 16 * MIB, {"tier": "ssd"})

        await node.want(disk, claimed=False)
        told = await node.until(disk, lambda disk: any(each.type == "Released" for each in disk.status.conditions))
        assert volume in told.status.conditions[-1].message
        assert ready(told)
        assert (await node.csi.capacity({"tier": "ssd"})) == 0, "what is to be released takes no new volumes"
        await node.csi.delete_volume(volume)
        await node.want(disk, tier_override=told.status.tier)  # any change has it looked at again
        released = await node.until(disk, available)
        assert released.status.eligible
        assert released.status.pool.uuid == ""
        assert disk.is_blank()
