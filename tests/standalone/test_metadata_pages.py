"""A pool whose metadata pages are used up: told by name, takes nothing new, and is well again after a deletion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from agent.config.settings import PoolSettings, Settings
from agent.csi.client import CallFailed, CsiClient
from agent.daemon.standalone import Standalone
from agent.nvmf import initiator
from agent.nvmf.failure import CommandError
from agent.pools.metadata_pages import pages_at_least, pages_at_most
from agent.pools.names import is_probe_name
from agent.spdk import lvol
from agent.spdk.client import Client
from tests.contract.waiting import until
from tests.crash.machine import Machine, Patient

from .test_full_pool import host_of

MIB, GIB = 1 << 20, 1 << 30
KIB128 = 128 << 10
EXTENT = 512 * KIB128
"""What one page describes."""
POOL = {"cluster_bytes": KIB128, "metadata_pages_min": 256, "metadata_pages_per_tib": 4000, "overprovision_ratio": 100}
PAGES = 286
"""Of a pool of 512 MiB."""
SSD = {"tier": "ssd"}


async def used_up(host: initiator.Controller, size: int) -> int:
    """Write into one extent after the other until that fails; how many were written."""
    for number in range(size // EXTENT):
        try:
            await host.write(1, number * EXTENT, b"x" * 4096)
        except CommandError:
            return number
    raise AssertionError("the pages were never used up")


async def test_used_up_by_writes(machine: Machine) -> None:
    settings = ", ".join(f"{key}: {value}" for key, value in POOL.items())
    machine.start_agent(f"pool: {{refresh_interval_s: 0.2, {settings}}}", disk_size="512MiB")
    client = Patient(machine.endpoint)
    try:
        await client.wait_ready()
        first = await client.call("create_volume", "first", 8 * GIB, SSD)
        second = await client.call("create_volume", "second", 16 * GIB, SSD)

        async def said(volume: str) -> tuple[bool, str]:
            how = (await client.call("get_volume", volume)).status.volume_condition
            return how.abnormal, how.message

        async with host_of(client, first) as one, host_of(client, second) as other:
            for number in range(8 * GIB // EXTENT):
                await one.write(1, number * EXTENT, b"x" * 4096)
            assert await said(first) == (False, "the volume is available")
            assert await used_up(other, 16 * GIB) == PAGES - 1 - 2 - 128, "the target's own, two volumes, the first's"

            seen = await until(lambda: said(first), lambda seen: seen[0], timeout_s=30)
            assert "metadata pages of pool" in seen[1] and "delete snapshots or volumes" in seen[1]
            assert (await client.call("get_capacity", SSD)).available_capacity == 0
            for call in (client.client.create_volume("third", MIB, SSD), client.client.create_snapshot("s", first)):
                with pytest.raises(CallFailed, match="metadata pages") as refused:
                    await call
                assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            await one.write(1, 4096, b"y" * 4096)  # where something was written before

        await client.call("unpublish", second)
        await client.call("delete_volume", second)
        await until(lambda: said(first), lambda seen: not seen[0], timeout_s=30)
        assert (await client.call("get_capacity", SSD)).available_capacity > 0
        await client.call("create_volume", "third", MIB, SSD)
        async with Client(machine.target.socket_path) as rpc:
            await rpc.wait_connected(10)
            assert [each.name for each in await lvol.list_lvols(rpc) if is_probe_name(each.name)] == []
    finally:
        await client.close()


async def test_used_up_by_volumes_while_another_disk_has_pages(settings: Callable[..., Settings], folder: Path) -> None:
    here = settings(f"{folder}/a.img:512MiB:ssd", f"{folder}/b.img:512MiB:ssd", pool=PoolSettings(**POOL))
    async with Standalone(here) as agent, CsiClient(here.csi_endpoint, timeout_s=30) as csi:
        await agent.wait_ready(30)
        for number in range(2 * (PAGES - 1)):
            await csi.create_volume(f"v{number}", MIB, SSD)
        with pytest.raises(CallFailed, match="metadata pages") as refused:
            await csi.create_volume("one too many", MIB, SSD)
        assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED

        async def capacity() -> int:
            return await csi.capacity(SSD)

        await until(capacity, lambda seen: seen == 0, timeout_s=30)


@pytest.mark.parametrize(
    ("device", "data", "cluster", "pages"),
    [
        (2 * GIB, 16373 * KIB128, KIB128, 327),  # measured on v26.05, num_md_pages_per_cluster_ratio 2, 3 and 23
        (20 * GIB, 20477 * MIB, MIB, 614),
        (100 * GIB, 25594 * 4 * MIB, 4 * MIB, 5888),
    ],
)
def test_pages_of_a_pool_are_never_thought_more_than_they_are(device: int, data: int, cluster: int, pages: int) -> None:
    assert 0 <= pages - pages_at_least(device, data, cluster) < cluster // 4096 + 4


def test_pages_that_are_used() -> None:
    assert pages_at_most([], 0, MIB) == 0
    assert pages_at_most([GIB, MIB], 0, MIB) == 2
    assert pages_at_most([GIB, MIB], 2 * MIB, MIB) == 4
    assert pages_at_most([GIB, MIB], 900 * MIB, MIB) == 5, "two for the large one, one for the small one"
