"""What happens to data and space under I/O: allocation, a full pool, rate limits, latency histograms."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import pytest

from agent.errors import QuarryError
from agent.nvmf import initiator
from agent.spdk import bdev, lvol
from agent.spdk.client import Client

from .conftest import HOST, MIB, Pool, make_pool, remove_pool
from .targets import ADDRESS, Target

Export = Callable[..., Awaitable[str]]
Name = Callable[[str], str]


async def allocated(rpc: Client, name: str) -> int:
    found = await bdev.get(rpc, name)
    assert found is not None and found.lvol is not None
    return found.lvol.num_allocated_clusters


async def test_a_thin_lvol_takes_clusters_as_it_is_written(rpc: Client, pool: Pool, export: Export, port: int) -> None:
    uuid = await lvol.create(rpc, pool.name, "v", 16 * MIB)
    host = await initiator.connect(ADDRESS, port, await export(uuid), HOST)
    assert await allocated(rpc, uuid) == 0
    await host.write(1, 3 * MIB, b"\x01" * 4096)
    assert await allocated(rpc, uuid) == 1
    await host.write(1, 5 * MIB - 4096, b"\x02" * 8192)
    assert await allocated(rpc, uuid) == 3
    assert await host.read(1, 3 * MIB, 8192) == b"\x01" * 4096 + bytes(4096)
    await host.unmap(1, 3 * MIB, MIB)
    assert await host.read(1, 3 * MIB, 4096) == bytes(4096)
    assert await allocated(rpc, uuid) == 2
    await host.close()


async def test_a_discard_does_not_reach_what_a_snapshot_holds(
    rpc: Client, pool: Pool, export: Export, port: int
) -> None:
    uuid = await lvol.create(rpc, pool.name, "v", 16 * MIB)
    host = await initiator.connect(ADDRESS, port, await export(uuid), HOST)
    for number in range(4):
        await host.write(1, number * MIB, bytes([number + 1]) * MIB)
    snapshot = await lvol.snapshot(rpc, uuid, "s")
    await host.write(1, MIB, b"\x11" * 4096)  # the second cluster is the volume's own from here on
    await host.unmap(1, 512 * 1024, 2 * MIB)
    assert await host.read(1, 0, MIB) == b"\x01" * MIB
    # What is its own stays its own; whether it still reads is the disk's to say (an AIO bdev discards nothing).
    assert await host.read(1, MIB, MIB) in (bytes(MIB), b"\x11" * 4096 + b"\x02" * (MIB - 4096))
    assert await host.read(1, 2 * MIB, MIB) == b"\x03" * MIB
    assert (await allocated(rpc, uuid), await allocated(rpc, snapshot)) == (1, 4)

    # Without the snapshot all is the volume's own, and a discard gives it back.
    await lvol.delete(rpc, snapshot)
    assert await host.read(1, 0, MIB) == b"\x01" * MIB
    assert await host.read(1, 2 * MIB, MIB) == b"\x03" * MIB
    assert await allocated(rpc, uuid) == 4
    await host.unmap(1, 0, 3 * MIB)
    assert await host.read(1, 0, 3 * MIB) == bytes(3 * MIB)
    assert await host.read(1, 3 * MIB, MIB) == b"\x04" * MIB
    assert await allocated(rpc, uuid) == 1
    await host.close()


async def test_a_full_pool_refuses_writes_and_keeps_what_is_there(
    rpc: Client, target: Target, export: Export, port: int, name: Name
) -> None:
    small = await make_pool(rpc, target, name("small"), 24 * MIB)
    uuid = await lvol.create(rpc, small.name, "v", 64 * MIB)
    host = await initiator.connect(ADDRESS, port, await export(uuid), HOST)
    written = 0
    with pytest.raises(QuarryError):
        for number in range(64):
            await host.write(1, number * MIB, bytes([number + 1]) * MIB)
            written += 1
    info = await lvol.get_lvstore(rpc, small.name)
    assert info is not None
    assert written == info.total_data_clusters
    for number in range(written):
        assert await host.read(1, number * MIB, 4096) == bytes([number + 1]) * 4096
    await host.close()
    await remove_pool(rpc, small)


async def test_rate_limits_hold(rpc: Client, pool: Pool, export: Export, port: int) -> None:
    uuid = await lvol.create(rpc, pool.name, "v", 16 * MIB)
    host = await initiator.connect(ADDRESS, port, await export(uuid), HOST)
    await host.write(1, 0, b"\x01" * 6 * MIB)
    await bdev.set_qos(rpc, uuid, r_mbps=4)
    started = time.monotonic()
    await host.read(1, 0, 6 * MIB)
    assert time.monotonic() - started > 1.0  # 1.5 s at 4 MiB/s, less what the first time slice lets through
    started = time.monotonic()
    await host.write(1, 0, b"\x02" * 6 * MIB)
    assert time.monotonic() - started < 1.0  # writes have no limit
    await bdev.set_qos(rpc, uuid)
    started = time.monotonic()
    await host.read(1, 0, 6 * MIB)
    assert time.monotonic() - started < 1.0
    await host.close()


async def test_histogram_counts_operations(rpc: Client, pool: Pool, export: Export, port: int) -> None:
    uuid = await lvol.create(rpc, pool.name, "v", 16 * MIB)
    host = await initiator.connect(ADDRESS, port, await export(uuid), HOST)
    await host.write(1, 0, b"\x01" * 4096)
    await bdev.enable_histogram(rpc, uuid)
    for number in range(5):
        await host.write(1, number * 4096, b"\x01" * 4096)
        await host.read(1, 0, 4096)
    assert sum((await bdev.histogram(rpc, uuid)).counts) == 10
    await host.close()
