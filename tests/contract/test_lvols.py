"""Lvstores and logical volumes: life, sizes, thin and thick, snapshots and clones."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from agent.spdk import bdev, lvol
from agent.spdk.bdev import LvolPart
from agent.spdk.client import Client

from .conftest import BLOCK, MIB, Pool
from .targets import Target
from .waiting import refused

Name = Callable[[str], str]


async def free(rpc: Client, pool: Pool) -> int:
    info = await lvol.get_lvstore(rpc, pool.name)
    assert info is not None
    return info.free_clusters


async def part(rpc: Client, name: str) -> LvolPart:
    found = await bdev.get(rpc, name)
    assert found is not None and found.lvol is not None
    return found.lvol


async def size(rpc: Client, name: str) -> int:
    found = await bdev.get(rpc, name)
    assert found is not None
    return found.size_bytes


# --- lvstores ---


async def test_lvstore(rpc: Client, pool: Pool) -> None:
    info = await lvol.get_lvstore(rpc, pool.name)
    assert info is not None
    assert (info.uuid, info.name, info.base_bdev) == (pool.uuid, pool.name, pool.bdev)
    assert (info.cluster_size, info.block_size) == (MIB, BLOCK)
    assert 200 * MIB < info.size_bytes < 256 * MIB
    assert info.free_bytes == info.size_bytes
    assert info in await lvol.list_lvstores(rpc)
    assert await lvol.list_lvols(rpc, pool.name) == []


async def test_lvstore_refusals(rpc: Client, pool: Pool, target: Target, name: Name) -> None:
    assert await refused(lvol.create_lvstore(rpc, pool.bdev, name("p"), cluster_bytes=MIB)) == -1
    assert await refused(lvol.create_lvstore(rpc, pool.bdev, pool.name, cluster_bytes=MIB)) == -1
    assert await refused(lvol.create_lvstore(rpc, "none", name("p"), cluster_bytes=MIB)) == -19
    assert await refused(lvol.delete_lvstore(rpc, "none")) == -19
    assert await refused(lvol.list_lvols(rpc, "none")) == -19
    assert await lvol.get_lvstore(rpc, "none") is None


async def test_deleting_the_base_bdev_keeps_the_pool_on_the_disk(rpc: Client, pool: Pool) -> None:
    uuid = await lvol.create(rpc, pool.name, "v", 16 * MIB)
    await bdev.aio_delete(rpc, pool.bdev)
    assert await lvol.get_lvstore(rpc, pool.name) is None
    assert await bdev.get(rpc, uuid) is None
    await bdev.aio_create(rpc, pool.bdev, pool.file, BLOCK)
    await bdev.wait_for_examine(rpc)
    info = await lvol.get_lvstore(rpc, pool.name)
    assert info is not None and info.uuid == pool.uuid
    assert [v.uuid for v in await lvol.list_lvols(rpc, pool.name)] == [uuid]


async def test_deleting_the_pool_frees_the_disk(rpc: Client, pool: Pool) -> None:
    await lvol.create(rpc, pool.name, "v", 16 * MIB)
    await lvol.delete_lvstore(rpc, pool.name)
    assert await bdev.get(rpc, f"{pool.name}/v") is None
    base = await bdev.get(rpc, pool.bdev)
    assert base is not None and not base.claimed
    again = await lvol.create_lvstore(rpc, pool.bdev, pool.name, cluster_bytes=MIB)
    assert again != pool.uuid
    assert await lvol.list_lvols(rpc, pool.name) == []


async def test_growing_a_pool(rpc: Client, pool: Pool) -> None:
    before = await lvol.get_lvstore(rpc, pool.name)
    assert before is not None
    os.truncate(pool.file, 512 * MIB)
    await bdev.aio_rescan(rpc, pool.bdev)
    await lvol.grow_lvstore(rpc, pool.name)
    after = await lvol.get_lvstore(rpc, pool.name)
    assert after is not None
    assert after.total_data_clusters == before.total_data_clusters + 256
    assert after.free_clusters == before.free_clusters + 256


async def test_a_pool_grows_as_far_as_its_mask_of_clusters_reaches(rpc: Client, pool: Pool) -> None:
    before = await lvol.get_lvstore(rpc, pool.name)
    assert before is not None
    most = before.growth_limit_bytes
    os.truncate(pool.file, most + before.cluster_size)
    await bdev.aio_rescan(rpc, pool.bdev)
    assert await refused(lvol.grow_lvstore(rpc, pool.name)) == -32602
    assert await lvol.get_lvstore(rpc, pool.name) == before, "it goes on as it was"
    await bdev.aio_delete(rpc, pool.bdev)
    os.truncate(pool.file, most)
    await bdev.aio_create(rpc, pool.bdev, str(pool.file), 4096)
    await bdev.wait_for_examine(rpc)
    await lvol.grow_lvstore(rpc, pool.name)
    after = await lvol.get_lvstore(rpc, pool.name)
    assert after is not None
    assert after.total_data_clusters - before.total_data_clusters == (most - 256 * MIB) // before.cluster_size


async def test_a_pool_on_a_disk_that_shrinks(rpc: Client, pool: Pool) -> None:
    before = await lvol.get_lvstore(rpc, pool.name)
    os.truncate(pool.file, 128 * MIB)
    assert await refused(bdev.aio_rescan(rpc, pool.bdev)) == -16
    assert await lvol.get_lvstore(rpc, pool.name) == before, "it goes on as it was"
    await bdev.aio_delete(rpc, pool.bdev)
    await bdev.aio_create(rpc, pool.bdev, str(pool.file), 4096)
    await bdev.wait_for_examine(rpc)
    assert await lvol.get_lvstore(rpc, pool.name) is None, "it is not loaded from a smaller disk"
    await bdev.aio_delete(rpc, pool.bdev)
    os.truncate(pool.file, 256 * MIB)
    await bdev.aio_create(rpc, pool.bdev, str(pool.file), 4096)
    await bdev.wait_for_examine(rpc)
    assert await lvol.get_lvstore(rpc, pool.name) == before


async def test_renaming_a_pool(rpc: Client, pool: Pool, name: Name) -> None:
    uuid = await lvol.create(rpc, pool.name, "v", 16 * MIB)
    new = name("pool-new")
    await lvol.rename_lvstore(rpc, pool.name, new)
    assert await lvol.get_lvstore(rpc, pool.name) is None
    found = await bdev.get(rpc, f"{new}/v")
    assert found is not None and found.uuid == uuid


# --- lvols ---


async def test_life_of_a_thin_lvol(rpc: Client, pool: Pool) -> None:
    volume = f"{pool.name}/v"
    before = await free(rpc, pool)
    uuid = await lvol.create(rpc, pool.name, "v", 10 * MIB, thin=True)
    assert await refused(lvol.create(rpc, pool.name, "v", 10 * MIB)) == -17
    found = await bdev.get(rpc, volume)
    assert found is not None
    assert (found.name, found.uuid, found.aliases) == (uuid, uuid, (volume,))
    assert (found.product_name, found.size_bytes) == ("Logical Volume", 10 * MIB)
    assert await bdev.get(rpc, uuid) == found
    info = await part(rpc, volume)
    assert (info.thin_provision, info.num_allocated_clusters, info.snapshot, info.clone) == (True, 0, False, False)
    assert (info.lvol_store_uuid, info.base_bdev) == (pool.uuid, pool.bdev)
    (listed,) = await lvol.list_lvols(rpc, pool.name)
    assert (listed.uuid, listed.name, listed.alias) == (uuid, "v", volume)
    assert (listed.is_thin_provisioned, listed.num_allocated_clusters) == (True, 0)
    assert await free(rpc, pool) == before

    await lvol.delete(rpc, volume)
    assert await bdev.get(rpc, volume) is None
    assert await refused(lvol.delete(rpc, volume)) == -19
    assert await refused(lvol.delete(rpc, uuid)) == -19


async def test_a_thick_lvol_takes_its_space_at_once_and_gives_it_back(rpc: Client, pool: Pool) -> None:
    before = await free(rpc, pool)
    uuid = await lvol.create(rpc, pool.name, "v", 10 * MIB, thin=False, clear_method="none")
    assert await free(rpc, pool) == before - 10
    assert (await part(rpc, uuid)).thin_provision is False
    await lvol.delete(rpc, uuid)
    assert await free(rpc, pool) == before


async def test_more_than_there_is(rpc: Client, pool: Pool) -> None:
    """Thick: refused. Thin: promised."""
    assert await refused(lvol.create(rpc, pool.name, "big", 1 << 40, thin=False)) == -32602
    await lvol.create(rpc, pool.name, "big", 1 << 40, thin=True)
    assert await size(rpc, f"{pool.name}/big") == 1 << 40


async def test_sizes_are_rounded_up_to_clusters(rpc: Client, target: Target, name: Name) -> None:
    disk = name("d")
    await bdev.aio_create(rpc, disk, str(target.disk(disk, 256 * MIB)), BLOCK)
    await lvol.create_lvstore(rpc, disk, disk, cluster_bytes=4 * MIB)
    await lvol.create(rpc, disk, "v", 5 * MIB)
    assert await size(rpc, f"{disk}/v") == 8 * MIB
    await lvol.resize(rpc, f"{disk}/v", 9 * MIB)
    assert await size(rpc, f"{disk}/v") == 12 * MIB
    await rpc.call("bdev_lvol_create", {"lvs_name": disk, "lvol_name": "zero", "size_in_mib": 0})
    assert await size(rpc, f"{disk}/zero") == 0
    await bdev.aio_delete(rpc, disk)


@pytest.mark.parametrize(
    ("lvol_name", "code"),
    [("x" * 63, None), ("x" * 64, -22), ("x" * 10_000, -22), ("", -22), ("a/b", None), ("..", None), ("ü🙂", None)],
    ids=["63", "64", "10000", "empty", "slash", "dots", "unicode"],
)
async def test_lvol_names(rpc: Client, pool: Pool, lvol_name: str, code: int | None) -> None:
    if code is not None:
        assert await refused(lvol.create(rpc, pool.name, lvol_name, MIB)) == code
        assert await lvol.list_lvols(rpc, pool.name) == []
        return
    uuid = await lvol.create(rpc, pool.name, lvol_name, MIB)
    assert [v.name for v in await lvol.list_lvols(rpc, pool.name)] == [lvol_name]
    found = await bdev.get(rpc, f"{pool.name}/{lvol_name}")
    assert found is not None and found.uuid == uuid


async def test_create_refusals(rpc: Client, pool: Pool) -> None:
    assert await refused(lvol.create(rpc, "none", "n", 10 * MIB)) == -19
    assert await refused(rpc.call("bdev_lvol_create", {"lvol_name": "n", "size_in_mib": 10})) == -22


async def test_resize(rpc: Client, pool: Pool) -> None:
    volume = f"{pool.name}/v"
    await lvol.create(rpc, pool.name, "v", 100 * MIB)
    for wanted in (200, 200, 50, 201):
        await lvol.resize(rpc, volume, wanted * MIB)
        assert await size(rpc, volume) == wanted * MIB
    assert await refused(lvol.resize(rpc, f"{pool.name}/none", MIB)) == -19
    thick = await lvol.create(rpc, pool.name, "thick", 10 * MIB, thin=False)
    before = await free(rpc, pool)
    await lvol.resize(rpc, thick, 20 * MIB)
    assert await free(rpc, pool) == before - 10


async def test_rename(rpc: Client, pool: Pool) -> None:
    uuid = await lvol.create(rpc, pool.name, "v", MIB)
    await lvol.rename(rpc, f"{pool.name}/v", "w")
    assert await bdev.get(rpc, f"{pool.name}/v") is None
    found = await bdev.get(rpc, f"{pool.name}/w")
    assert found is not None and (found.uuid, found.aliases) == (uuid, (f"{pool.name}/w",))


# --- snapshots and clones ---


async def test_snapshot_and_clone_families(rpc: Client, pool: Pool) -> None:
    volume, snapshot, clone = (f"{pool.name}/{name}" for name in ("v", "s", "c"))
    await lvol.create(rpc, pool.name, "v", 20 * MIB)
    uuid = await lvol.snapshot(rpc, volume, "s")
    info = await part(rpc, snapshot)
    assert (await bdev.get(rpc, uuid)) == await bdev.get(rpc, snapshot)
    assert (info.snapshot, info.clone, info.clones) == (True, False, ("v",))
    assert await size(rpc, snapshot) == 20 * MIB
    info = await part(rpc, volume)
    assert (info.snapshot, info.clone, info.base_snapshot) == (False, True, "s")

    await lvol.clone(rpc, snapshot, "c")
    info = await part(rpc, clone)
    assert (info.snapshot, info.clone, info.base_snapshot, info.thin_provision) == (False, True, "s", True)
    assert sorted((await part(rpc, snapshot)).clones) == ["c", "v"]
    assert await refused(lvol.delete(rpc, snapshot)) == -32603

    await lvol.decouple_parent(rpc, clone)
    info = await part(rpc, clone)
    assert (info.clone, info.base_snapshot, info.thin_provision) == (False, None, True)
    await lvol.delete(rpc, snapshot)  # one clone is left: it takes the snapshot's place
    info = await part(rpc, volume)
    assert (info.clone, info.base_snapshot) == (False, None)


async def test_snapshot_of_a_snapshotted_volume_makes_a_chain(rpc: Client, pool: Pool) -> None:
    volume = f"{pool.name}/v"
    await lvol.create(rpc, pool.name, "v", 20 * MIB)
    await lvol.snapshot(rpc, volume, "s1")
    await lvol.snapshot(rpc, volume, "s2")
    assert (await part(rpc, volume)).base_snapshot == "s2"
    assert (await part(rpc, f"{pool.name}/s2")).base_snapshot == "s1"
    await lvol.delete(rpc, f"{pool.name}/s2")
    assert (await part(rpc, volume)).base_snapshot == "s1"


async def test_inflate_makes_a_clone_thick_and_independent(rpc: Client, pool: Pool) -> None:
    clone = f"{pool.name}/c"
    await lvol.create(rpc, pool.name, "v", 20 * MIB)
    await lvol.snapshot(rpc, f"{pool.name}/v", "s")
    await lvol.clone(rpc, f"{pool.name}/s", "c")
    before = await free(rpc, pool)
    await lvol.inflate(rpc, clone)
    info = await part(rpc, clone)
    assert (info.clone, info.thin_provision, info.num_allocated_clusters) == (False, False, 20)
    assert await free(rpc, pool) == before - 20


async def test_a_snapshotted_thick_lvol_is_thin_and_its_space_is_the_snapshots(rpc: Client, pool: Pool) -> None:
    await lvol.create(rpc, pool.name, "v", 20 * MIB, thin=False, clear_method="none")
    before = await free(rpc, pool)
    await lvol.snapshot(rpc, f"{pool.name}/v", "s")
    volume, snapshot = await part(rpc, f"{pool.name}/v"), await part(rpc, f"{pool.name}/s")
    assert (volume.thin_provision, volume.num_allocated_clusters) == (True, 0)
    assert snapshot.num_allocated_clusters == 20
    assert await free(rpc, pool) == before


async def test_snapshot_refusals(rpc: Client, pool: Pool) -> None:
    volume, snapshot = f"{pool.name}/v", f"{pool.name}/s"
    await lvol.create(rpc, pool.name, "v", 20 * MIB)
    await lvol.snapshot(rpc, volume, "s")
    assert await refused(lvol.snapshot(rpc, volume, "s")) == -32602
    assert await refused(lvol.snapshot(rpc, f"{pool.name}/none", "s9")) == -19
    assert await refused(lvol.clone(rpc, volume, "c9")) == -32602
    assert await refused(lvol.clone(rpc, f"{pool.name}/none", "c9")) == -19
    await lvol.clone(rpc, snapshot, "c")
    assert await refused(lvol.clone(rpc, snapshot, "c")) == -32602
    assert await refused(lvol.resize(rpc, snapshot, 40 * MIB)) == -32602


async def test_read_only_lvols_can_be_cloned(rpc: Client, pool: Pool) -> None:
    volume = f"{pool.name}/v"
    await lvol.create(rpc, pool.name, "v", 20 * MIB)
    await lvol.set_read_only(rpc, volume)
    assert await refused(lvol.resize(rpc, volume, 40 * MIB)) == -32602
    await lvol.clone(rpc, volume, "c")
    assert (await part(rpc, f"{pool.name}/c")).base_snapshot == "v"
