"""Disks that are pulled, put back elsewhere, and grow, with volumes in use on them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.csi.client import CallFailed
from agent.errors import QuarryError
from agent.model import Disk, DiskPhase, StorageNode
from agent.nvmf import initiator
from agent.spdk import bdev, nvmf
from agent.spdk.client import Client
from agent.volumes.rules.names import volume_nqn
from tests.contract.targets import Target
from tests.disks.between import Between
from tests.disks.conftest import FAST_S, NODE, Node
from tests.disks.loops import LoopDisk

MIB = 1 << 20
WELL = "the volume is available"


def ready(disk: Disk) -> bool:
    return disk.status.phase is DiskPhase.READY


def missing(disk: Disk) -> bool:
    return disk.status.phase is DiskPhase.MISSING


async def said_of(node: Node, volume: str) -> str:
    return str((await node.csi.get_volume(volume)).status.volume_condition.message)


async def until_said(node: Node, volume: str, wanted: Callable[[str], bool], since: float) -> float:
    """Seconds from `since` until the volume's condition is as wanted."""
    while True:
        said = await said_of(node, volume)
        if wanted(said):
            return time.monotonic() - since
        assert time.monotonic() < since + 20, f"{said}\n{node.log()[-3000:]}"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def host(node: Node, volume: str, name: str = NODE) -> AsyncIterator[initiator.Controller]:
    """The volume as its published node reaches it."""
    context = await node.csi.publish(volume, name)
    found = await node.store.get(StorageNode, name)
    assert found is not None
    connected = await initiator.connect(context["address"], int(context["port"]), context["nqn"], found.status.host_nqn)
    try:
        yield connected
    finally:
        with contextlib.suppress(QuarryError):
            await connected.close()


async def write_all_the_time(controller: initiator.Controller, data: bytes) -> int:
    """Write the same 64 KiB over and over until that fails; returns how often it went well."""
    count = 0
    while True:
        try:
            async with asyncio.timeout(10):
                await controller.write(1, (count % 64) * len(data), data)
        except (QuarryError, TimeoutError):
            return count
        count += 1


async def test_pulled_under_io_and_back_at_another_path(start_node: Any, make_disk: Callable[..., LoopDisk]) -> None:
    disk, other = make_disk(), make_disk("d1")
    async with start_node() as node:
        await node.want(disk, claimed=True)
        await node.until(disk, ready)
        volume = await node.csi.create_volume("v", 64 * MIB, {"tier": "ssd"})
        await node.want(other, claimed=True)
        await node.until(other, ready)
        neighbour = await node.csi.create_volume("w", 64 * MIB, {"tier": "ssd"})
        before, data = disk.device, os.urandom(64 << 10)
        async with host(node, volume) as here, host(node, neighbour) as there:
            for chunk in range(64):
                await here.write(1, chunk * len(data), data)
            writing = asyncio.create_task(write_all_the_time(here, data))
            beside = asyncio.create_task(write_all_the_time(there, data))
            pulled_at = time.monotonic()
            disk.pull()
            await node.until(disk, missing)
            gone_s = time.monotonic() - pulled_at
            said_s = await until_said(
                node, volume, lambda said: "is Missing: it is not in this machine" in said, pulled_at
            )
            await writing
            assert await said_of(node, neighbour) == WELL
            plugged_at = time.monotonic()
            assert disk.plug() != before
            await node.until(disk, ready)
            back_s = time.monotonic() - plugged_at
            well_s = await until_said(node, volume, lambda said: said == WELL, plugged_at)
            await there.write(1, 0, data)
            assert not beside.done(), "I/O of another disk was disturbed"
            beside.cancel()
        async with host(node, volume) as here:
            assert await here.read(1, 0, 64 * len(data)) == data * 64
        print(f"missing {gone_s:.2f} s, condition {said_s:.2f} s, back {back_s:.2f} s, well {well_s:.2f} s")
        assert max(gone_s, said_s) < FAST_S
        assert max(back_s, well_s) < FAST_S


async def test_unpublished_while_the_disk_is_away(
    start_node: Any, make_disk: Callable[..., LoopDisk], spdk_tgt: Target
) -> None:
    """A pod can leave its node although the disk has died; nobody gets in when the disk is back."""
    disk = make_disk()
    async with start_node() as node, Client(spdk_tgt.socket_path) as rpc:
        await node.want(disk, claimed=True)
        await node.until(disk, ready)
        volume, data = await node.csi.create_volume("v", 64 * MIB, {"tier": "ssd"}), os.urandom(64 << 10)
        async with host(node, volume) as here:
            await here.write(1, 0, data)
            disk.pull()
            await node.until(disk, missing)
            for _ in range(2):
                await node.csi.unpublish(volume, NODE)
            exported = await nvmf.get_subsystem(rpc, volume_nqn(volume))
            assert exported is None or not exported.hosts
            with pytest.raises(CallFailed, match="is not ready"):
                await node.csi.publish(volume, NODE)
            await node.csi.unpublish(volume, NODE)
        disk.plug()
        await node.until(disk, ready)
        exported = await nvmf.get_subsystem(rpc, volume_nqn(volume))
        assert exported is None or not exported.hosts
        async with host(node, volume) as here:
            assert await here.read(1, 0, len(data)) == data


async def test_pulled_and_back_at_the_same_path(start_node: Any, make_disk: Callable[..., LoopDisk]) -> None:
    disk = make_disk()
    async with start_node() as node:
        await node.want(disk, claimed=True)
        pool = (await node.until(disk, ready)).status.pool
        volume = await node.csi.create_volume("v", 64 * MIB, {"tier": "ssd"})
        for _ in range(3):
            disk.pull()
            await node.until(disk, missing)
            assert await node.csi.capacity({"tier": "ssd"}) == 0
            disk.put_back()
            assert (await node.until(disk, ready)).status.pool.uuid == pool.uuid
        await until_said(node, volume, lambda said: said == WELL, time.monotonic())
        assert await node.csi.capacity({"tier": "ssd"}) > 0
        await node.csi.delete_volume(volume)


async def test_moved_while_no_agent_ran(start_node: Any, make_disk: Callable[..., LoopDisk]) -> None:
    """The target still has the device that is gone; what it would write there is lost."""
    disk = make_disk()
    async with start_node() as node:
        await node.want(disk, claimed=True)
        await node.until(disk, ready)
        volume = await node.csi.create_volume("v", 64 * MIB, {"tier": "ssd"})
        before = disk.device
        node.kill()
        disk.pull()
        assert disk.plug() != before
        await node.start()
        found = await node.until(disk, lambda now: ready(now) and now.status.path == disk.device)
        assert found.status.path == disk.device
        await until_said(node, volume, lambda said: said == WELL, time.monotonic())
        async with host(node, volume) as here:
            await here.write(1, 0, b"\x01" * 4096)
            assert await here.read(1, 0, 4096) == b"\x01" * 4096
        node.kill()
        disk.pull()
        await node.start()
        await node.until(disk, missing)
        await until_said(node, volume, lambda said: "is Missing" in said, time.monotonic())


async def test_growth(start_node: Any, make_disk: Callable[..., LoopDisk]) -> None:
    disk = make_disk()
    async with start_node() as node:
        await node.want(disk, claimed=True)
        pool = (await node.until(disk, ready)).status.pool
        grown_at = time.monotonic()
        disk.grow(3 << 30)
        found = await node.until(disk, lambda disk: disk.status.pool.size_bytes >= pool.size_bytes + (1 << 30))
        assert time.monotonic() - grown_at < FAST_S
        assert ready(found)
        big = {"tier": "ssd", "provisioning": "thick"}
        assert await node.csi.create_volume("v", 2500 * MIB, big)


async def test_without_io_uring_a_disk_is_reached_by_aio(
    start_node: Any, make_disk: Callable[..., LoopDisk], spdk_tgt: Target, folder: Path
) -> None:
    disk = make_disk()
    between = Between(spdk_tgt.socket_path, folder / "b.sock")
    between.unknown = {"bdev_uring_create"}
    async with between.serving(), start_node(target=between) as node:
        await node.want(disk, claimed=True)
        found = await node.until(disk, ready)
        async with Client(spdk_tgt.socket_path) as rpc:
            await rpc.wait_connected(5)
            base = await bdev.get(rpc, found.bdev_name)
        assert base is not None
        assert base.product_name == "AIO disk"
        disk.grow(3 << 30)
        await node.until(disk, lambda disk: disk.status.pool.size_bytes > 2900 * MIB)
        disk.pull()
        await node.until(disk, missing)
        disk.plug()
        await node.until(disk, ready)
        done = await node.quarry("release", disk.device)
        assert done.returncode == 0, done.stderr
        assert disk.is_blank()


async def test_an_unclaimed_disk_that_goes_is_forgotten(start_node: Any, make_disk: Callable[..., LoopDisk]) -> None:
    disk = make_disk()
    async with start_node() as node:
        await node.until(disk, lambda disk: disk.status.eligible)
        disk.pull()
        deadline = time.monotonic() + FAST_S
        while await node.disk(disk) is not None:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)


async def test_a_change_of_tier_is_followed(start_node: Any, make_disk: Callable[..., LoopDisk]) -> None:
    disk = make_disk()
    async with start_node() as node:
        await node.want(disk, claimed=True)
        await node.until(disk, ready)
        assert await node.csi.capacity({"tier": "ssd"}) > 0
        done = await node.quarry("claim", disk.device, "--tier", "hdd", "--yes")
        assert done.returncode == 0, done.stderr
        deadline = time.monotonic() + FAST_S
        while await node.csi.capacity({"tier": "hdd"}) == 0:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        assert await node.csi.capacity({"tier": "ssd"}) == 0


async def test_a_disk_that_fails_operations(start_node: Any, make_disk: Callable[..., LoopDisk], folder: Path) -> None:
    """A loop device whose file cannot grow any more fails writes, as a disk with bad sectors does."""
    small = folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", small], check=True)  # noqa: ASYNC221
    try:
        disk = make_disk("small/d0")
        async with start_node() as node:
            await node.want(disk, claimed=True)
            await node.until(disk, ready)
            volume = await node.csi.create_volume("v", 256 * MIB, {"tier": "ssd"})
            assert await said_of(node, volume) == WELL
            async with host(node, volume) as here:
                failed_at = time.monotonic()
                with pytest.raises(QuarryError):
                    for chunk in range(200):
                        failed_at = time.monotonic()
                        await here.write(1, chunk * MIB, b"\x01" * MIB)
            assert await until_said(node, volume, lambda said: "is failing: " in said, failed_at) < FAST_S
            assert await node.csi.capacity({"tier": "ssd"}) == 0, "a failing disk takes no new volumes"
            assert ready(await node.until(disk, lambda disk: True)), "what is on it is still served"
        disk.close()
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)  # noqa: ASYNC221
