"""Lvols hold what was written to them: allocation, snapshots, clones, full pools, restarts."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from agent.embedded.bdev import IoFailure
from agent.embedded.lvs.datafile import FileCache
from agent.embedded.lvs.lvol import LvolBdev
from agent.embedded.lvs.records import LvolRecord
from agent.embedded.rpc import RpcFault

from .conftest import MIB, Machine

BLOCK = 4096
CLUSTER = 64 * 1024


def pattern(seed: int, length: int = BLOCK) -> bytes:
    return random.Random(seed).randbytes(length)


async def lvol(machine: Machine, name: str = "v", size_mib: int = 4, thin: bool = True) -> None:
    await machine.call("bdev_lvol_create", lvol_name=name, size_in_mib=size_mib, lvs_name="pool", thin_provision=thin)


async def test_a_thin_lvol_takes_clusters_as_it_is_written(machine: Machine) -> None:
    await machine.pool(cluster_bytes=CLUSTER)
    free = await machine.free_clusters()
    await lvol(machine)
    assert await machine.free_clusters() == free
    bdev = machine.bdev("pool/v")
    assert await bdev.read(0, 4 * MIB) == bytes(4 * MIB)
    await bdev.write(CLUSTER - BLOCK, pattern(1, 2 * BLOCK))
    assert await machine.free_clusters() == free - 2
    await bdev.write(0, pattern(2))
    assert await machine.free_clusters() == free - 2
    assert await bdev.read(CLUSTER - BLOCK, 2 * BLOCK) == pattern(1, 2 * BLOCK)
    await bdev.write_zeroes(1 * MIB, 1 * MIB)
    assert await machine.free_clusters() == free - 2, "zeroes where nothing was written need no room"


async def test_unmapping_whole_clusters_gives_them_back(machine: Machine) -> None:
    await machine.pool(cluster_bytes=CLUSTER)
    free = await machine.free_clusters()
    await lvol(machine)
    bdev = machine.bdev("pool/v")
    await bdev.write(0, pattern(1, 4 * CLUSTER))
    await bdev.unmap(BLOCK, 2 * CLUSTER)
    assert await machine.free_clusters() == free - 3, "only the second cluster was unmapped as a whole"
    assert await bdev.read(BLOCK, 2 * CLUSTER) == bytes(2 * CLUSTER)
    assert await bdev.read(0, BLOCK) == pattern(1, 4 * CLUSTER)[:BLOCK]
    await machine.restart()
    await machine.reopen()
    assert await machine.free_clusters() == free - 3


async def test_a_thick_lvol_takes_all_at_once_and_can_always_be_written(machine: Machine) -> None:
    await machine.pool(size_bytes=16 * MIB)
    free = await machine.free_clusters()
    await lvol(machine, size_mib=free, thin=False)
    assert await machine.free_clusters() == 0
    with pytest.raises(RpcFault, match="No space left on device"):
        await lvol(machine, "w", 1, thin=False)
    await machine.bdev("pool/v").write(0, pattern(1, free * MIB))


async def test_a_full_pool_fails_the_write_and_spoils_nothing(machine: Machine) -> None:
    await machine.pool(size_bytes=16 * MIB)
    free = await machine.free_clusters()
    await lvol(machine, "a", 100)
    await lvol(machine, "b", 100)
    a, b = machine.bdev("pool/a"), machine.bdev("pool/b")
    for cluster in range(free):
        await a.write(cluster * MIB, pattern(cluster))
    for target in (a, b):
        with pytest.raises(IoFailure) as failure:
            await target.write(free * MIB, pattern(99))
        assert failure.value.errno == 28
    assert await b.read(free * MIB, BLOCK) == bytes(BLOCK)
    await a.write(0, pattern(7))
    await machine.call("bdev_lvol_resize", name="pool/a", size_in_mib=free - 1)
    await b.write(0, pattern(8))
    await machine.restart()
    await machine.reopen()
    assert await machine.bdev("pool/a").read(0, BLOCK) == pattern(7)
    assert await machine.bdev("pool/a").read(5 * MIB, BLOCK) == pattern(5)
    assert await machine.bdev("pool/b").read(0, BLOCK) == pattern(8)
    assert await machine.free_clusters() == 0


async def test_a_snapshot_is_one_moment_of_a_lvol_under_writes(machine: Machine) -> None:
    """A writer fills block after block with the number of its round: a snapshot may see at most one border."""
    await machine.pool()
    await lvol(machine, size_mib=8)
    bdev, blocks = machine.bdev("pool/v"), 64
    stop = asyncio.Event()

    async def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            for block in range(blocks):
                await bdev.write(block * (8 * MIB // blocks), number.to_bytes(8, "little") * (BLOCK // 8))
                await asyncio.sleep(0)

    writer = asyncio.create_task(write())
    for number in range(5):
        await machine.call("bdev_lvol_snapshot", lvol_name="pool/v", snapshot_name=f"s{number}")
    stop.set()
    await writer
    for number in range(5):
        snapshot = machine.bdev(f"pool/s{number}")
        seen = [
            int.from_bytes((await snapshot.read(block * (8 * MIB // blocks), BLOCK))[:8], "little")
            for block in range(blocks)
        ]
        assert seen == sorted(seen, reverse=True)
        assert seen[0] - seen[-1] <= 1


async def test_clones_and_snapshots_do_not_see_each_others_writes(machine: Machine) -> None:
    await machine.pool(cluster_bytes=CLUSTER)
    free = await machine.free_clusters()
    await lvol(machine)
    origin = machine.bdev("pool/v")
    await origin.write(0, pattern(1, 2 * CLUSTER))
    await machine.call("bdev_lvol_snapshot", lvol_name="pool/v", snapshot_name="s")
    await machine.call("bdev_lvol_clone", snapshot_name="pool/s", clone_name="c")
    await origin.write(0, pattern(2))
    await machine.bdev("pool/c").write(0, pattern(3))
    assert await machine.free_clusters() == free - 4
    assert await machine.bdev("pool/s").read(0, 2 * CLUSTER) == pattern(1, 2 * CLUSTER)
    assert await origin.read(0, 2 * CLUSTER) == pattern(2) + pattern(1, 2 * CLUSTER)[BLOCK:]
    assert await machine.bdev("pool/c").read(0, 2 * CLUSTER) == pattern(3) + pattern(1, 2 * CLUSTER)[BLOCK:]
    with pytest.raises(IoFailure) as failure:
        await machine.bdev("pool/s").write(0, pattern(4))
    assert failure.value.errno == 30


async def test_a_snapshot_leaves_its_clusters_to_the_last_clone(machine: Machine) -> None:
    await machine.pool(cluster_bytes=CLUSTER)
    free = await machine.free_clusters()
    await lvol(machine)
    await machine.bdev("pool/v").write(0, pattern(1, 3 * CLUSTER))
    await machine.call("bdev_lvol_snapshot", lvol_name="pool/v", snapshot_name="s")
    await machine.call("bdev_lvol_clone", snapshot_name="pool/s", clone_name="c")
    with pytest.raises(RpcFault) as refused:
        await machine.call("bdev_lvol_delete", name="pool/s")
    assert refused.value.code == -32603
    await machine.call("bdev_lvol_delete", name="pool/v")
    await machine.call("bdev_lvol_delete", name="pool/s")
    clone = (await machine.lvols())["c"]
    assert (clone["is_clone"], clone["num_allocated_clusters"]) == (False, 3)
    assert await machine.bdev("pool/c").read(0, 3 * CLUSTER) == pattern(1, 3 * CLUSTER)
    await machine.call("bdev_lvol_delete", name="pool/c")
    assert await machine.free_clusters() == free


async def test_cut_off_and_grown_again_reads_as_zeroes(machine: Machine) -> None:
    await machine.pool()
    await lvol(machine, size_mib=4)
    bdev = machine.bdev("pool/v")
    await bdev.write(3 * MIB, pattern(1))
    await machine.call("bdev_lvol_resize", name="pool/v", size_in_mib=2)
    await machine.call("bdev_lvol_resize", name="pool/v", size_in_mib=4)
    assert bdev.size_bytes == 4 * MIB
    assert await bdev.read(3 * MIB, BLOCK) == bytes(BLOCK)
    assert (await machine.lvols())["v"]["num_allocated_clusters"] == 0


async def test_a_lvol_that_is_gone_answers_no_io(machine: Machine) -> None:
    await machine.pool()
    await lvol(machine)
    bdev = machine.bdev("pool/v")
    path = bdev.driver_specific()["embedded"]["file"]
    assert os.stat(path).st_size == 4 * MIB  # noqa: PTH116
    await machine.call("bdev_lvol_delete", name="pool/v")
    with pytest.raises(IoFailure) as failure:
        await bdev.write(0, pattern(1))
    assert failure.value.errno == 19
    assert not os.access(path, os.F_OK)


async def test_a_removed_disk_takes_its_lvols_with_it_and_brings_them_back(machine: Machine) -> None:
    await machine.pool()
    await lvol(machine)
    await machine.bdev("pool/v").write(0, pattern(1))
    await machine.call("bdev_aio_delete", name="disk-pool")
    assert machine.bdevs.all() == []
    assert await machine.call("bdev_lvol_get_lvstores") == []
    await machine.reopen()
    assert await machine.bdev("pool/v").read(0, BLOCK) == pattern(1)
    gone = await machine.call("notify_get_notifications")
    assert [note["type"] for note in gone].count("bdev_unregister") == 2


async def test_what_came_past_us_through_a_loop_device_is_counted_at_the_next_start(machine: Machine) -> None:
    await machine.pool()
    await lvol(machine)
    free = await machine.free_clusters()
    path = machine.bdev("pool/v").driver_specific()["embedded"]["file"]
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, pattern(1), 2 * MIB)
    os.close(fd)
    await machine.restart()
    await machine.reopen()
    assert await machine.free_clusters() == free - 1
    assert await machine.bdev("pool/v").read(2 * MIB, BLOCK) == pattern(1)


async def test_the_number_of_lvols_is_bounded_by_metadata_pages(machine: Machine) -> None:
    """16 clusters, one metadata page each: the super blob and 15 lvols, as on SPDK v26.05."""
    await machine.pool(size_bytes=16 * MIB)
    for number in range(15):
        await lvol(machine, f"v{number}", 1)
    with pytest.raises(RpcFault) as refused:
        await lvol(machine, "one-more", 1)
    assert (refused.value.code, refused.value.message) == (-32602, "Cannot allocate memory")
    await machine.call("bdev_lvol_delete", name="pool/v3")
    await lvol(machine, "one-more", 1)


async def test_a_disk_is_marked_while_a_store_is_on_it(machine: Machine) -> None:
    await machine.pool()
    path = machine.directory / "pool.img"
    with path.open("rb") as file:
        assert file.read(8) == b"SPDKBLOB"
    await lvol(machine)
    await machine.call("bdev_lvol_delete_lvstore", lvs_name="pool")
    with path.open("rb") as file:
        assert file.read(4096) == bytes(4096)
    assert [entry.name for entry in machine.directory.iterdir()] == ["pool.img"]
    assert [bdev.name for bdev in machine.bdevs.all()] == ["disk-pool"]


async def test_a_store_follows_its_disk_when_it_grows(machine: Machine) -> None:
    await machine.pool(size_bytes=64 * MIB)
    free = await machine.free_clusters()
    machine.disk("pool", 128 * MIB)
    await machine.call("bdev_lvol_grow_lvstore", lvs_name="pool")
    assert await machine.free_clusters() == free
    await machine.call("bdev_aio_rescan", name="disk-pool")
    await machine.call("bdev_lvol_grow_lvstore", lvs_name="pool")
    assert await machine.free_clusters() == free + 64
    await machine.restart()
    await machine.reopen()
    assert await machine.free_clusters() == free + 64


async def test_a_store_on_memory_works_and_leaves_nothing(machine: Machine) -> None:
    await machine.call("bdev_malloc_create", name="m", num_blocks=16384, block_size=4096)
    await machine.call("bdev_lvol_create_lvstore", bdev_name="m", lvs_name="pool", cluster_sz=MIB)
    await lvol(machine)
    await machine.bdev("pool/v").write(0, pattern(1))
    assert await machine.bdev("pool/v").read(0, BLOCK) == pattern(1)
    await machine.restart()
    assert list(machine.directory.iterdir()) == []


async def test_operations_on_one_lvol_at_once_happen_one_after_the_other(machine: Machine) -> None:
    await machine.pool()
    await lvol(machine)
    await machine.bdev("pool/v").write(0, pattern(1))
    calls = [
        machine.call("bdev_lvol_snapshot", lvol_name="pool/v", snapshot_name="s"),
        machine.call("bdev_lvol_snapshot", lvol_name="pool/v", snapshot_name="s"),
        machine.call("bdev_lvol_resize", name="pool/v", size_in_mib=8),
        machine.call("bdev_lvol_delete", name="pool/v"),
        machine.call("bdev_lvol_delete", name="pool/v"),
        machine.call("bdev_lvol_resize", name="pool/v", size_in_mib=9),
        machine.call("bdev_lvol_create", lvol_name="s", size_in_mib=1, lvs_name="pool"),
    ]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    codes = [answer.code if isinstance(answer, RpcFault) else None for answer in answers]
    assert codes == [None, -32602, None, None, -19, -19, -17]
    assert (await machine.lvols()).keys() == {"s"}
    assert await machine.bdev("pool/s").read(0, BLOCK) == pattern(1)
    assert machine.bdev("pool/s").size_bytes == 4 * MIB


async def test_a_disk_removed_during_a_snapshot_leaves_no_half_snapshot(machine: Machine) -> None:
    await machine.pool()
    await lvol(machine, size_mib=32)
    for cluster in range(32):
        await machine.bdev("pool/v").write(cluster * MIB, pattern(cluster, MIB))
    snapshot = asyncio.create_task(machine.call("bdev_lvol_snapshot", lvol_name="pool/v", snapshot_name="s"))
    await asyncio.sleep(0.001)
    await machine.call("bdev_aio_delete", name="disk-pool")
    with pytest.raises(RpcFault) as failed:
        await snapshot
    assert failed.value.code == -19
    await machine.reopen()
    assert (await machine.lvols()).keys() == {"v"}
    assert await machine.bdev("pool/v").read(5 * MIB, MIB) == pattern(5, MIB)


async def test_a_write_held_back_by_qos_does_not_land_behind_the_end_of_a_smaller_lvol(machine: Machine) -> None:
    await machine.pool()
    await lvol(machine)
    bdev = machine.bdev("pool/v")
    await machine.call("bdev_set_qos_limit", name="pool/v", w_mbytes_per_sec=1)
    await bdev.write(0, bytes(MIB // 4))
    late = asyncio.create_task(bdev.write(3 * MIB, pattern(1)))
    await asyncio.sleep(0)
    await machine.call("bdev_lvol_resize", name="pool/v", size_in_mib=2)
    with pytest.raises(IoFailure):
        await late
    await machine.call("bdev_lvol_resize", name="pool/v", size_in_mib=4)
    assert await bdev.read(3 * MIB, BLOCK) == bytes(BLOCK)


class SlowPool:
    """The pool of one lvol whose metadata take until `durable` is set."""

    uuid, name, base_name, cluster_bytes = "u", "pool", "disk", CLUSTER

    def __init__(self) -> None:
        self.files = FileCache()
        self.durable = asyncio.Event()

    def allocate(self, lvol: LvolRecord, clusters: list[int]) -> bool:
        for cluster in clusters:
            lvol.own.add(cluster)
        return True

    def release(self, lvol: LvolRecord, clusters: list[int]) -> None:
        raise NotImplementedError

    def relatives(self, lvol: LvolRecord) -> tuple[str | None, list[str]]:
        return None, []

    async def commit(self) -> None:
        await self.durable.wait()


async def test_no_flush_ends_before_the_metadata_are_durable(tmp_path: Path) -> None:
    pool, path = SlowPool(), tmp_path / "data"
    path.write_bytes(b"")
    bdev = LvolBdev(pool, LvolRecord("11111111-2222-3333-4444-555555555555", "v", 1, 4, True), path, BLOCK)
    await bdev.write(0, pattern(1))
    flushes = {asyncio.create_task(bdev.flush()) for _ in range(3)}
    done, _ = await asyncio.wait(flushes, timeout=0.1)
    assert not done
    pool.durable.set()
    await asyncio.gather(*flushes)
    pool.durable.clear()
    await asyncio.wait_for(bdev.flush(), 2)  # nothing new
    pool.files.close()


async def test_folders_that_are_no_stores_are_left_where_stores_would_be(machine: Machine) -> None:
    theirs = machine.directory / "volatile" / "mine" / "journal"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("precious")
    await machine.restart()
    assert theirs.read_text() == "precious"
