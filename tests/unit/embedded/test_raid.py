"""raid1: both members hold every write, one may leave at any time, a new one is rebuilt under load."""

from __future__ import annotations

import asyncio
import random
from typing import Any
from uuid import uuid4

import pytest

from agent.embedded.bdev import IoFailure
from agent.embedded.filebdev import MallocBdev
from agent.embedded.rpc import RpcFault

from .conftest import MIB, Machine

BLOCK = 4096
SIZE = 8 * MIB


async def mirror(machine: Machine, *members: str) -> None:
    for name in members:
        await memory(machine, name)
    await machine.call("bdev_raid_create", name="r", raid_level="raid1", base_bdevs=list(members))


async def memory(machine: Machine, name: str) -> None:
    await machine.call("bdev_malloc_create", name=name, num_blocks=SIZE // BLOCK, block_size=BLOCK)


async def raid(machine: Machine) -> dict[str, Any]:
    (found,) = await machine.call("bdev_raid_get_bdevs", category="all")
    assert isinstance(found, dict)
    return found


async def rebuilt(machine: Machine) -> None:
    async with asyncio.timeout(20):
        while "process" in await raid(machine):  # noqa: ASYNC110 - the raid says so only when asked
            await asyncio.sleep(0.001)


async def content(machine: Machine, name: str) -> bytes:
    return await machine.bdev(name).read(0, SIZE)


async def test_every_write_is_on_both_members(machine: Machine) -> None:
    await mirror(machine, "a", "b")
    bdev = machine.bdev("r")
    data = random.Random(1).randbytes(2 * MIB)
    await bdev.write(MIB, data)
    await bdev.write_zeroes(MIB, 16 * BLOCK)
    await bdev.unmap(2 * MIB, 16 * BLOCK)
    expected = await content(machine, "r")
    assert expected[MIB + 16 * BLOCK : 2 * MIB] == data[16 * BLOCK : MIB]
    assert await content(machine, "a") == expected
    assert await content(machine, "b") == expected
    assert machine.bdev("a").claimed_by == "raid"


async def test_it_reads_and_writes_with_one_member_and_ends_with_the_last(machine: Machine) -> None:
    await mirror(machine, "a", "b")
    bdev = machine.bdev("r")
    await bdev.write(0, b"1" * BLOCK)
    await machine.call("bdev_malloc_delete", name="a")
    assert (await raid(machine))["num_base_bdevs_operational"] == 1
    assert await bdev.read(0, BLOCK) == b"1" * BLOCK
    await bdev.write(0, b"2" * BLOCK)
    assert await bdev.read(0, BLOCK) == b"2" * BLOCK
    await machine.call("bdev_malloc_delete", name="b")
    assert machine.bdevs.get("r") is None
    with pytest.raises(IoFailure):
        await bdev.read(0, BLOCK)
    with pytest.raises(IoFailure):
        await bdev.write(0, b"3" * BLOCK)


async def test_a_member_that_fails_a_write_leaves_and_the_write_succeeds(machine: Machine) -> None:
    """A thin lvol in a full pool cannot take the write."""
    await machine.pool(size_bytes=6 * MIB)
    await machine.call("bdev_lvol_create", lvol_name="v", size_in_mib=8, lvs_name="pool", thin_provision=True)
    await memory(machine, "m")
    await machine.call("bdev_raid_create", name="r", raid_level="raid1", base_bdevs=["pool/v", "m"])
    bdev = machine.bdev("r")
    data = random.Random(1).randbytes(SIZE)
    for offset in range(0, SIZE, MIB):
        await bdev.write(offset, data[offset : offset + MIB])
    state = await raid(machine)
    assert [member["name"] for member in state["base_bdevs_list"]] == [None, "m"]
    assert await content(machine, "r") == data
    assert machine.bdev("pool/v").claimed_by is None


async def test_a_new_member_is_rebuilt_while_it_is_written(machine: Machine) -> None:
    await mirror(machine, "a", "b")
    await machine.call("bdev_raid_set_options", process_window_size_kb=64)
    bdev, chance, stop = machine.bdev("r"), random.Random(2), asyncio.Event()
    await bdev.write(0, chance.randbytes(SIZE))
    await machine.call("bdev_raid_remove_base_bdev", name="b")
    await memory(machine, "c")

    async def write() -> int:
        count = 0
        while not stop.is_set():
            await bdev.write(chance.randrange(SIZE // BLOCK) * BLOCK, chance.randbytes(BLOCK))
            count += 1
            await asyncio.sleep(0)
        return count

    writers = [asyncio.create_task(write()) for _ in range(4)]
    await machine.call("bdev_raid_add_base_bdev", raid_bdev="r", base_bdev="c")
    progress = (await raid(machine))["process"]
    assert (progress["type"], progress["target"]) == ("rebuild", "c")
    with pytest.raises(RpcFault) as refused:
        await machine.call("bdev_raid_add_base_bdev", raid_bdev="r", base_bdev="b")
    assert refused.value.code == -1
    await rebuilt(machine)
    stop.set()
    assert sum(await asyncio.gather(*writers)) > 0
    assert await content(machine, "c") == await content(machine, "a")
    await machine.call("bdev_raid_remove_base_bdev", name="a")
    assert await content(machine, "r") == await content(machine, "c")


async def test_a_member_under_rebuild_is_not_read(machine: Machine) -> None:
    """Also when it has the first place."""
    await mirror(machine, "a", "b")
    await machine.call("bdev_raid_set_options", process_window_size_kb=64)
    await machine.bdev("r").write(0, b"1" * SIZE)
    await machine.call("bdev_raid_remove_base_bdev", name="a")
    await memory(machine, "c")
    await machine.call("bdev_raid_add_base_bdev", raid_bdev="r", base_bdev="c")
    assert await machine.bdev("r").read(SIZE - BLOCK, BLOCK) == b"1" * BLOCK
    assert "process" in await raid(machine)
    await rebuilt(machine)
    await machine.call("bdev_raid_remove_base_bdev", name="b")
    assert await content(machine, "r") == b"1" * SIZE


async def test_a_member_that_leaves_during_its_rebuild_is_just_gone(machine: Machine) -> None:
    await mirror(machine, "a", "b")
    await machine.bdev("r").write(0, b"1" * BLOCK)
    await machine.call("bdev_raid_remove_base_bdev", name="b")
    await machine.call("bdev_raid_add_base_bdev", raid_bdev="r", base_bdev="b")
    await machine.call("bdev_malloc_delete", name="b")
    state = await raid(machine)
    assert "process" not in state
    assert state["num_base_bdevs_discovered"] == 1
    await machine.bdev("r").write(0, b"2" * BLOCK)
    assert await machine.bdev("r").read(0, BLOCK) == b"2" * BLOCK


async def test_the_source_leaving_during_a_rebuild_ends_the_raid(machine: Machine) -> None:
    """What is left has only part of the data."""
    await mirror(machine, "a", "b")
    await machine.call("bdev_raid_remove_base_bdev", name="b")
    await machine.call("bdev_raid_add_base_bdev", raid_bdev="r", base_bdev="b")
    await machine.call("bdev_malloc_delete", name="a")
    assert await machine.call("bdev_raid_get_bdevs", category="all") == []
    assert machine.bdev("b").claimed_by is None


async def test_it_waits_for_members_that_come_later(machine: Machine) -> None:
    await machine.call("bdev_raid_create", name="r", raid_level="raid1", base_bdevs=["a", "b"])
    assert (await raid(machine))["state"] == "configuring"
    await memory(machine, "b")
    assert machine.bdevs.get("r") is None
    await memory(machine, "a")
    assert (await raid(machine))["state"] == "online"
    assert machine.bdev("r").size_bytes == SIZE


async def test_it_is_as_large_as_its_smallest_member_and_follows_it(machine: Machine) -> None:
    await machine.pool()
    for name, size in (("x", 4), ("y", 6)):
        await machine.call("bdev_lvol_create", lvol_name=name, size_in_mib=size, lvs_name="pool", thin_provision=True)
    await machine.call("bdev_raid_create", name="r", raid_level="1", base_bdevs=["pool/x", "pool/y"])
    sizes = []
    machine.bdev("r").subscribe(lambda bdev, _: sizes.append(bdev.size_bytes))
    assert machine.bdev("r").size_bytes == 4 * MIB
    await machine.call("bdev_lvol_resize", name="pool/x", size_in_mib=8)
    await machine.call("bdev_lvol_resize", name="pool/y", size_in_mib=8)
    assert sizes == [6 * MIB, 8 * MIB]


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"base_bdevs": ["a"]}, -22),
        ({"base_bdevs": []}, -22),
        ({"base_bdevs": ["a", "a"]}, -1),
        ({"base_bdevs": ["a", "other-blocks"]}, -22),
        ({"base_bdevs": ["a", "b"], "strip_size_kb": 64}, -22),
        ({"base_bdevs": ["a", "b"], "name": ""}, -22),
        ({"base_bdevs": ["a", "b"], "name": "a"}, -17),
        ({"base_bdevs": ["a", "b"], "raid_level": "raid9"}, -32700),
        ({"base_bdevs": ["a", "b"], "superblock": True}, -95),
    ],
)
async def test_what_is_refused_leaves_no_claim(machine: Machine, params: dict[str, Any], code: int) -> None:
    await memory(machine, "a")
    await memory(machine, "b")
    await machine.call("bdev_malloc_create", name="other-blocks", num_blocks=1024, block_size=512)
    with pytest.raises(RpcFault) as refused:
        await machine.call("bdev_raid_create", **{"name": "r", "raid_level": "raid1", **params})
    assert refused.value.code == code
    assert [bdev.claimed_by for bdev in machine.bdevs.all()] == [None] * 3
    assert await machine.call("bdev_raid_get_bdevs", category="all") == []


async def test_a_write_that_only_an_unfinished_member_took_has_failed(machine: Machine) -> None:
    await machine.pool(size_bytes=6 * MIB)
    await machine.call("bdev_lvol_create", lvol_name="v", size_in_mib=8, lvs_name="pool", thin_provision=True)
    await memory(machine, "m")
    await machine.call("bdev_raid_create", name="r", raid_level="raid1", base_bdevs=["pool/v", "m"])
    bdev = machine.bdev("r")
    await bdev.write(0, bytes(await machine.free_clusters() * MIB))
    await machine.call("bdev_raid_remove_base_bdev", name="m")
    await machine.call("bdev_raid_set_options", process_window_size_kb=4)
    await memory(machine, "c")
    await machine.call("bdev_raid_add_base_bdev", raid_bdev="r", base_bdev="c")
    with pytest.raises(IoFailure):
        await bdev.write(SIZE - BLOCK, b"x" * BLOCK)
    assert machine.bdev("r") is bdev
    assert (await raid(machine))["base_bdevs_list"][0]["is_configured"]


class CountingDisk(MallocBdev):
    flushes = 0

    async def do_flush(self) -> None:
        self.flushes += 1


async def test_a_rebuilt_member_is_flushed_before_it_counts(machine: Machine) -> None:
    await mirror(machine, "a", "b")
    await machine.call("bdev_raid_remove_base_bdev", name="b")
    disk = CountingDisk("c", str(uuid4()), BLOCK, SIZE // BLOCK)
    machine.bdevs.add(disk)
    await machine.call("bdev_raid_add_base_bdev", raid_bdev="r", base_bdev="c")
    await rebuilt(machine)
    assert disk.flushes == 1
