"""A disk that is carried to another node brings its volumes and snapshots with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from agent.csi.client import CallFailed, from_snapshot
from agent.model import Disk, DiskPhase
from tests.contract.targets import Target, find_spdk_tgt
from tests.disks.loops import LoopDisk
from tests.disks.test_hotplug import WELL, host, said_of

MIB = 1 << 20
SSD = {"tier": "ssd"}


@pytest.fixture
def other_target() -> Iterator[Target]:
    """The target of the other node."""
    if find_spdk_tgt() is None:
        pytest.skip("spdk_tgt not found: block devices need the real one")
    target = Target("real", core=1)
    target.start()
    yield target
    target.close()


def ready(disk: Disk) -> bool:
    return disk.status.phase is DiskPhase.READY


async def test_a_disk_brings_its_volumes_to_another_node(
    start_node: Any, make_disk: Callable[..., LoopDisk], spdk_tgt: Target, other_target: Target
) -> None:
    disk, data = make_disk(), os.urandom(MIB)
    async with start_node("node-a") as first:
        await first.want(disk, claimed=True)
        pool = (await first.until(disk, ready)).status.pool
        volume = await first.csi.create_volume("pvc-1", 64 * MIB, SSD)
        async with host(first, volume, "node-a") as here:
            await here.write(1, MIB, data)
        snapshot = (await first.csi.create_snapshot("snap-1", volume)).snapshot_id
        copy = await first.csi.create_volume("pvc-2", 64 * MIB, SSD, source=from_snapshot(snapshot))
        async with host(first, volume, "node-a") as here:
            await here.write(1, MIB, bytes(MIB))
        async with start_node("node-b", target=other_target) as thief:
            await thief.want(disk, claimed=True)
            refused = await thief.until(disk, lambda disk: disk.status.phase is DiskPhase.FAILED)
            assert "in use" in refused.status.message, "two nodes would write to one pool"
            await thief.want(disk, claimed=None)
    spdk_tgt.kill()  # the machine is off, and the disk is carried over

    async with start_node("node-b", target=other_target) as second:
        await second.want(disk, claimed=True)
        assert (await second.until(disk, ready)).status.pool.uuid == pool.uuid
        await second.until_listed({volume, copy})
        listed = await second.csi.list_snapshots()
        assert [(each.snapshot.snapshot_id, each.snapshot.ready_to_use) for each in listed.entries] == [
            (snapshot, True)
        ]
        assert await said_of(second, volume) == WELL
        for each, expected in ((volume, bytes(MIB)), (copy, data)):
            async with host(second, each, "node-b") as here:
                assert await here.read(1, MIB, MIB) == expected
            await second.csi.unpublish(each, "node-b")
        assert await second.csi.create_volume("pvc-1", 64 * MIB, SSD) == volume
        with pytest.raises(CallFailed) as failure:
            await second.csi.create_volume("pvc-1", 64 * MIB, {"tier": "hdd"})
        assert failure.value.code is grpc.StatusCode.ALREADY_EXISTS
        restored = await second.csi.create_volume("pvc-3", 64 * MIB, SSD, source=from_snapshot(snapshot))
        async with host(second, restored, "node-b") as here:
            assert await here.read(1, MIB, MIB) == data
        await second.csi.unpublish(restored, "node-b")

        second.kill()
        await second.start()
        await second.until_listed({volume, copy, restored})
        for each in (volume, copy, restored):
            await second.csi.delete_volume(each)
        await second.csi.delete_snapshot(snapshot)
        done = await second.quarry("release", disk.device)
        assert done.returncode == 0, done.stderr
        assert disk.is_blank()
    spdk_tgt.start()
