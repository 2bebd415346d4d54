"""Base bdevs, lookups, QoS, statistics, histograms."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

import pytest

from agent.errors import RpcError
from agent.spdk import app, bdev, lvol
from agent.spdk.client import Client

from .conftest import BLOCK, MIB, Pool
from .targets import Target
from .waiting import refused

Name = Callable[[str], str]
Export = Callable[..., Awaitable[str]]

CREATE = {"aio": bdev.aio_create, "uring": bdev.uring_create}
DELETE = {"aio": bdev.aio_delete, "uring": bdev.uring_delete}
RESCAN = {"aio": bdev.aio_rescan, "uring": bdev.uring_rescan}
TAKEN = {"aio": -17, "uring": -32603}
PRODUCT = {"aio": "AIO disk", "uring": "URING bdev"}


@pytest.mark.parametrize("driver", ["aio", "uring"])
async def test_life_of_a_file_backed_bdev(rpc: Client, target: Target, name: Name, driver: str) -> None:
    disk = name("d")
    file = str(target.disk(disk, 64 * MIB))
    assert await CREATE[driver](rpc, disk, file, BLOCK) == disk
    found = await bdev.get(rpc, disk)
    assert found is not None
    assert (found.name, found.product_name, found.filename) == (disk, PRODUCT[driver], file)
    assert (found.size_bytes, found.block_size, found.claimed) == (64 * MIB, BLOCK, False)
    assert found.uuid in found.aliases
    assert await bdev.get(rpc, found.uuid) == found

    assert await refused(CREATE[driver](rpc, disk, file, BLOCK)) == TAKEN[driver]
    os.truncate(file, 128 * MIB)
    await RESCAN[driver](rpc, disk)
    found = await bdev.get(rpc, disk)
    assert found is not None and found.size_bytes == 128 * MIB
    resized = [n.ctx for n in await app.notifications(rpc) if n.type == "bdev_resize"]
    assert disk in resized

    await DELETE[driver](rpc, disk)
    assert await bdev.get(rpc, disk) is None
    assert await refused(DELETE[driver](rpc, disk)) == -19
    assert await refused(RESCAN[driver](rpc, disk)) == -19
    assert await asyncio.to_thread(os.path.getsize, file) == 128 * MIB


async def test_aio_refusals(rpc: Client, target: Target, name: Name) -> None:
    disk = name("d")
    file = str(target.disk(disk, 64 * MIB))
    assert await refused(bdev.aio_create(rpc, disk, str(target.disks / "missing"), BLOCK)) == -2
    assert await refused(bdev.aio_create(rpc, disk, file, 1000)) == -22
    assert await refused(bdev.aio_create(rpc, disk, file)) == -22
    assert await bdev.get(rpc, disk) is None


async def test_given_uuid_is_kept(rpc: Client, target: Target, name: Name) -> None:
    disk, uuid = name("d"), "0b1da399-bc93-487e-ab7f-666155841daa"
    await bdev.aio_create(rpc, disk, str(target.disk(disk, 64 * MIB)), BLOCK, uuid=uuid)
    found = await bdev.get(rpc, disk)
    assert found is not None and found.uuid == uuid
    assert await bdev.get(rpc, uuid) == found
    await bdev.aio_delete(rpc, disk)


async def test_malloc(rpc: Client, name: Name) -> None:
    disk = name("m")
    assert await bdev.malloc_create(rpc, disk, 8 * MIB, 512) == disk
    found = await bdev.get(rpc, disk)
    assert found is not None
    assert (found.product_name, found.size_bytes, found.block_size) == ("Malloc disk", 8 * MIB, 512)
    assert disk in [one.name for one in await bdev.list_all(rpc)]
    await bdev.malloc_delete(rpc, disk)
    assert await refused(bdev.malloc_delete(rpc, disk)) == -19


async def test_a_bdev_under_a_pool_is_claimed(rpc: Client, pool: Pool) -> None:
    base = await bdev.get(rpc, pool.bdev)
    assert base is not None and base.claimed


# --- QoS ---


async def limits(rpc: Client, name: str) -> tuple[int, int, int, int]:
    found = await bdev.get(rpc, name)
    assert found is not None
    got = found.assigned_rate_limits
    return got.rw_ios_per_sec, got.rw_mbytes_per_sec, got.r_mbytes_per_sec, got.w_mbytes_per_sec


async def test_qos_of_an_exported_volume_changes_at_once(rpc: Client, pool: Pool, export: Export) -> None:
    volume = f"{pool.name}/v"
    await lvol.create(rpc, pool.name, "v", 16 * MIB)
    await export(volume)
    await bdev.set_qos(rpc, volume, rw_iops=20000, rw_mbps=100)
    assert await limits(rpc, volume) == (20000, 100, 0, 0)
    await bdev.set_qos(rpc, volume, rw_iops=1500, r_mbps=7, w_mbps=8)
    assert await limits(rpc, volume) == (2000, 0, 7, 8)  # IOPS are rounded up to whole thousands
    await bdev.set_qos(rpc, volume)
    assert await limits(rpc, volume) == (0, 0, 0, 0)
    await rpc.call("bdev_set_qos_limit", {"name": volume, "w_mbytes_per_sec": 5})
    await rpc.call("bdev_set_qos_limit", {"name": volume, "rw_ios_per_sec": 3000})
    assert await limits(rpc, volume) == (3000, 0, 0, 5)  # what a call leaves out stays


async def test_qos_of_a_volume_nobody_opened_can_be_set_once(rpc: Client, pool: Pool) -> None:
    volume = f"{pool.name}/v"
    await lvol.create(rpc, pool.name, "v", 16 * MIB)
    await bdev.set_qos(rpc, volume, rw_iops=20000, rw_mbps=100)
    assert await limits(rpc, volume) == (20000, 100, 0, 0)
    assert await refused(bdev.set_qos(rpc, volume, rw_iops=3000, settle_s=0.2)) == -32602
    assert await limits(rpc, volume) == (20000, 100, 0, 0)


async def test_qos_refusals(rpc: Client, pool: Pool) -> None:
    await lvol.create(rpc, pool.name, "v", 16 * MIB)
    assert await refused(bdev.set_qos(rpc, f"{pool.name}/none", rw_iops=1000)) == -19
    assert await refused(rpc.call("bdev_set_qos_limit", {"name": f"{pool.name}/v"})) == -22


# --- statistics ---


async def test_iostat(rpc: Client, pool: Pool) -> None:
    volumes = [f"{pool.name}/{name}" for name in ("a", "b")]
    uuids = [await lvol.create(rpc, pool.name, name, 16 * MIB) for name in ("a", "b")]
    stats = await bdev.iostat(rpc, volumes)
    assert [one.name for one in stats.bdevs] == uuids
    assert stats.tick_rate > 0 and stats.ticks > 0
    assert {one.num_write_ops for one in stats.bdevs} == {0}
    assert {pool.bdev, *uuids} <= {one.name for one in (await bdev.iostat(rpc)).bdevs}
    assert await refused(bdev.iostat(rpc, [f"{pool.name}/none"])) == -19


async def test_histogram(rpc: Client, pool: Pool) -> None:
    volume = f"{pool.name}/v"
    await lvol.create(rpc, pool.name, "v", 16 * MIB)
    await bdev.enable_histogram(rpc, volume)
    histogram = await bdev.histogram(rpc, volume)
    assert histogram.tsc_rate > 0
    ranges = histogram.max_range - histogram.min_range + 1
    assert len(histogram.counts) == ranges << histogram.granularity
    await bdev.enable_histogram(rpc, volume, False)
    with pytest.raises(RpcError):
        await bdev.enable_histogram(rpc, f"{pool.name}/none")
