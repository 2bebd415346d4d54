"""A node whose target is changed from polling to interrupt mode and back, with a disk in service: nothing is lost."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from agent.model import Disk, DiskPhase, StorageNode
from agent.spdk import bdev
from agent.spdk.client import Client
from tests.contract.targets import Target, find_nvmf_tgt
from tests.disks.conftest import NODE, Node
from tests.disks.loops import LoopDisk
from tests.disks.test_hotplug import host

MIB = 1 << 20


def ready(disk: Disk) -> bool:
    return disk.status.phase is DiskPhase.READY


async def served_by(target: Target, disk: Disk) -> str:
    async with Client(target.socket_path) as rpc:
        await rpc.wait_connected(10)
        found = await bdev.get(rpc, disk.bdev_name)
        assert found is not None
        return "io_uring" if found.driver_specific.uring else "AIO"


async def mode(node: Node) -> tuple[str, tuple[str, ...]]:
    found = await node.store.get(StorageNode, NODE)
    assert found is not None
    return found.status.target_mode, tuple(found.status.frontends)


async def test_the_mode_is_changed_under_a_disk_in_service(
    start_node: Any, make_disk: Callable[..., LoopDisk], spdk_tgt: Target
) -> None:
    if find_nvmf_tgt() is None:
        pytest.skip("no nvmf_tgt (NVMF_TGT, beside SPDK_TGT, or PATH)")
    disk, data = make_disk(), os.urandom(64 << 10)
    async with start_node(claim=[{"path": disk.device}]) as node:
        first = await node.until(disk, ready)
        volume = await node.csi.create_volume("v", 64 * MIB, {"tier": "ssd"})
        async with host(node, volume) as here:
            await here.write(1, 0, data)
        assert (await mode(node))[0] == "polling"
        before = await served_by(spdk_tgt, first)
        try:
            spdk_tgt.kind = "sleeping"
            spdk_tgt.restart()
            await node.until_mode("interrupt")
            assert await served_by(spdk_tgt, first) == "AIO"
            assert await mode(node) == ("interrupt", ("nvme-tcp",))
            assert (await node.until(disk, ready)).status.pool.uuid == first.status.pool.uuid
            async with host(node, volume) as here:
                assert await here.read(1, 0, len(data)) == data
                await here.write(1, len(data), data)
        finally:
            spdk_tgt.kind = "real"
        spdk_tgt.restart()
        await node.until_mode("polling")
        assert await served_by(spdk_tgt, first) == before
        async with host(node, volume) as here:
            assert await here.read(1, 0, 2 * len(data)) == 2 * data
