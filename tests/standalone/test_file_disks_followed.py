"""File disks that cannot be used, go, change or move: each is told, others are served, and nothing is lost."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agent.config.settings import Settings
from agent.csi.client import CallFailed, CsiClient
from agent.daemon.standalone import Standalone
from agent.errors import InvalidArgument
from agent.model import Disk, DiskPhase, DiskStatus
from agent.pools.disk_conditions import attention
from agent.pools.why import Why
from agent.store.local import open_local

MIB = 1 << 20
Make = Callable[..., Settings]


async def until(settings: Settings, path: Path, wanted: Callable[[Disk], bool], timeout_s: float = 20) -> Disk:
    """The record of the disk on that file, once it is as wanted."""
    store = await open_local(settings.state_dir / "quarry.db")
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            found = [each for each in await store.list(Disk) if each.status.path == str(path)]
            if len(found) == 1 and wanted(found[0]):
                return found[0]
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.05)
    finally:
        await store.close()


def ready(disk: Disk) -> bool:
    return disk.status.phase is DiskPhase.READY


async def abnormal(csi: CsiClient, volume: str) -> str:
    condition = (await csi.get_volume(volume)).status.volume_condition
    return str(condition.message) if condition.abnormal else ""


@pytest.mark.parametrize("what", ["nowhere", "folder", "small"])
async def test_a_file_that_cannot_be_used_stops_nobody_else(what: str, settings: Make, folder: Path) -> None:
    bad = {"nowhere": folder / "missing" / "d.img", "folder": folder / "d", "small": folder / "small.img"}[what]
    (folder / "d").mkdir()
    (folder / "small.img").write_bytes(b"")
    chosen = settings(f"{bad}:128MiB:hdd", f"{folder}/good.img:128MiB:ssd")
    async with Standalone(chosen) as node, CsiClient(chosen.csi_endpoint) as csi:
        await node.wait_ready(20)
        assert await csi.create_volume("v", 16 * MIB, {"tier": "ssd"})
        told = await until(chosen, bad, lambda disk: disk.status.phase is DiskPhase.FAILED)
        assert str(bad) in told.status.message
        if what == "nowhere":
            bad.parent.mkdir()
            await until(chosen, bad, ready)


async def test_one_file_by_two_names_is_refused(settings: Make, folder: Path) -> None:
    file = folder / "d.img"
    with file.open("wb") as made:
        made.truncate(128 * MIB)
    (folder / "hard.img").hardlink_to(file)
    (folder / "soft.img").symlink_to(file)
    for other in ("hard.img", "soft.img", "./d.img"):
        with pytest.raises(InvalidArgument, match=r"are one file|named twice"):
            async with Standalone(settings(f"{file}:128MiB:ssd", f"{folder}/{other}:128MiB:ssd")):
                pass


async def test_a_file_that_is_removed_replaced_or_cut_while_it_is_served(settings: Make, folder: Path) -> None:
    disks = [f"{folder}/gone.img:256MiB:ssd", f"{folder}/new.img:256MiB:nvme", f"{folder}/cut.img:256MiB:hdd"]
    chosen = settings(*disks, reconcile={"audit_interval_s": 1.0})
    async with Standalone(chosen) as node, CsiClient(chosen.csi_endpoint) as csi:
        await node.wait_ready(20)
        for tier, name, why, word in (
            ("ssd", "gone.img", Why.REMOVED, "removed"),
            ("nvme", "new.img", Why.REMOVED, "replaced by another file"),
            ("hdd", "cut.img", Why.SHRUNK, "smaller"),
        ):
            file = folder / name
            volume = await csi.create_volume(tier, 16 * MIB, {"tier": tier})
            assert await abnormal(csi, volume) == ""
            if name == "gone.img":
                file.unlink()
            elif name == "new.img":  # a backup of it, for instance
                shutil.copyfile(file, folder / "other.img")
                (folder / "other.img").rename(file)
            else:
                os.truncate(file, 128 * MIB)
            await until(chosen, file, lambda disk, why=why: attention(disk, why) is not None)  # type: ignore[misc]
            assert word in await abnormal(csi, volume)
            with pytest.raises(CallFailed):
                await csi.create_volume(f"{tier}-2", 16 * MIB, {"tier": tier})
        os.truncate(folder / "cut.img", 256 * MIB)  # what was cut off does not come back with that

        def cut_short(disk: Disk) -> bool:
            return "though it has its size again" in getattr(attention(disk, Why.SHRUNK), "message", "")

        await until(chosen, folder / "cut.img", cut_short)
        assert "is lost" in await abnormal(csi, volume)
        with pytest.raises(CallFailed):
            await csi.create_volume("hdd-2", 16 * MIB, {"tier": "hdd"})
        await csi.delete_volume(volume)
        await until(chosen, folder / "cut.img", lambda disk: attention(disk, Why.SHRUNK) is None)
        assert await csi.create_volume("hdd-2", 16 * MIB, {"tier": "hdd"})


async def test_a_removed_file_whose_disk_is_forgotten_takes_no_volumes_that_go_with_it(
    settings: Make, folder: Path
) -> None:
    """The target may go on with the file that was removed: what a volume made now wrote would go with it."""
    chosen = settings(f"{folder}/d.img:256MiB:ssd")
    file = folder / "d.img"
    async with Standalone(chosen) as node, CsiClient(chosen.csi_endpoint) as csi:
        await node.wait_ready(20)
        await csi.create_volume("v", 16 * MIB, {"tier": "ssd"})
        disk = await until(chosen, file, ready)
        file.unlink()
        await until(chosen, file, lambda disk: attention(disk, Why.REMOVED) is not None)
        store = await open_local(chosen.state_dir / "quarry.db")
        await store.delete(Disk, disk.meta.name)
        await store.close()
        await until(chosen, file, lambda disk: disk.status.phase is not DiskPhase.AVAILABLE)
        try:
            made = await csi.create_volume("next", 16 * MIB, {"tier": "ssd"})
        except CallFailed:
            made = ""
    async with Standalone(chosen) as node, CsiClient(chosen.csi_endpoint) as csi:
        await node.wait_ready(20)
        if made:
            assert await abnormal(csi, made) == "", "it lies on the file that is there now"
        await until(chosen, file, ready)


async def test_a_file_that_grows_is_followed(settings: Make, folder: Path) -> None:
    chosen = settings(f"{folder}/d.img:256MiB:ssd")
    async with Standalone(chosen) as node:
        await node.wait_ready(20)
        before = await until(chosen, folder / "d.img", ready)
        os.truncate(folder / "d.img", 512 * MIB)
        size_bytes = before.status.pool.size_bytes
        await until(chosen, folder / "d.img", lambda disk: disk.status.pool.size_bytes == size_bytes + 256 * MIB)


async def test_a_moved_file_is_the_same_disk(settings: Make, folder: Path) -> None:
    before = settings(f"{folder}/d.img:256MiB:ssd")
    async with Standalone(before) as node, CsiClient(before.csi_endpoint) as csi:
        await node.wait_ready(20)
        volume = await csi.create_volume("v", 16 * MIB, {"tier": "ssd"})
        name = (await until(before, folder / "d.img", ready)).meta.name
    for suffix in ("", ".lvs"):  # the embedded target keeps data beside the file
        (folder / f"d.img{suffix}").rename(folder / f"moved.img{suffix}")
    after = settings(f"{folder}/moved.img:256MiB:ssd")
    for _ in range(2):  # and at the next start
        async with Standalone(after) as node, CsiClient(after.csi_endpoint) as csi:
            await node.wait_ready(20)
            found = await until(after, folder / "moved.img", ready)
            assert found.meta.name == name
            assert await abnormal(csi, volume) == ""


async def test_a_pool_that_another_target_has_is_told_as_that(settings: Make, folder: Path) -> None:
    file = folder / "d.img"
    owner = settings(f"{file}:256MiB:ssd")
    async with Standalone(owner) as node, CsiClient(owner.csi_endpoint) as csi:
        await node.wait_ready(20)
        await csi.create_volume("v", 16 * MIB, {"tier": "ssd"})
        second = owner.model_copy(
            update={"state_dir": folder / "other", "csi_endpoint": f"unix://{folder}/b.sock", "http": "off"}
        )
        async with Standalone(second) as other:
            await other.wait_ready(20)
            told = await until(second, file, lambda disk: disk.status.phase is DiskPhase.FAILED)
    assert "in use by process" in told.status.message
    assert "remove this one" not in told.status.message


async def test_a_pool_that_was_cut_short_is_told_as_that(settings: Make, folder: Path) -> None:
    file = folder / "d.img"
    owner = settings(f"{file}:256MiB:ssd")
    async with Standalone(owner) as node:
        await node.wait_ready(20)
        await until(owner, file, ready)
    os.truncate(file, 128 * MIB)
    async with Standalone(owner) as node:
        await node.wait_ready(20)
        told = await until(owner, file, lambda disk: disk.status.phase is DiskPhase.FAILED)
        assert "smaller than its pool" in told.status.message
        os.truncate(file, 256 * MIB)
        await until(owner, file, ready)
    os.truncate(file, 128 * MIB)
    stranger = owner.model_copy(update={"state_dir": folder / "other"})
    async with Standalone(stranger) as node:
        await node.wait_ready(20)
        told = await until(stranger, file, lambda disk: disk.status.phase is DiskPhase.FAILED)
        assert "carries pool" in told.status.message
        assert "remove this one" not in told.status.message


async def test_a_file_that_comes_back_is_served_again(settings: Make, folder: Path) -> None:
    chosen = settings(f"{folder}/d.img:256MiB:ssd")
    async with Standalone(chosen) as node, CsiClient(chosen.csi_endpoint) as csi:
        await node.wait_ready(20)
        volume = await csi.create_volume("v", 16 * MIB, {"tier": "ssd"})
    (folder / "d.img").rename(folder / "away.img")
    async with Standalone(chosen) as node, CsiClient(chosen.csi_endpoint) as csi:
        await node.wait_ready(20)
        told = await until(chosen, folder / "d.img", lambda disk: disk.status.phase is DiskPhase.MISSING)
        assert "is not there" in told.status.message
        assert await abnormal(csi, volume) != ""
        (folder / "away.img").rename(folder / "d.img")
        await until(chosen, folder / "d.img", ready)
        assert await abnormal(csi, volume) == ""


@pytest.mark.parametrize("how", ["deleted", "emptied"])
async def test_a_record_that_is_lost_comes_back_without_a_restart(how: str, settings: Make, folder: Path) -> None:
    chosen = settings(f"{folder}/d.img:256MiB:ssd")
    async with Standalone(chosen) as node, CsiClient(chosen.csi_endpoint) as csi:
        await node.wait_ready(20)
        volume = await csi.create_volume("v", 16 * MIB, {"tier": "ssd"})
        disk = await until(chosen, folder / "d.img", ready)
        store = await open_local(chosen.state_dir / "quarry.db")
        if how == "deleted":
            await store.delete(Disk, disk.meta.name)
        else:
            await store.update(replace(disk, status=DiskStatus()))
        await store.close()
        again = await until(chosen, folder / "d.img", ready)
        assert (again.meta.name, again.status.pool.uuid) == (disk.meta.name, disk.status.pool.uuid)
        deadline = time.monotonic() + 20
        while told := await abnormal(csi, volume):  # with the record went what its free space holds: that is zeroed
            assert time.monotonic() < deadline, told
            await asyncio.sleep(0.05)


async def test_releasing_a_configured_file_disk_is_answered(settings: Make, folder: Path) -> None:
    chosen = settings(f"{folder}/d.img:256MiB:ssd")
    async with Standalone(chosen) as node:
        await node.wait_ready(20)
        disk = await until(chosen, folder / "d.img", ready)
        store = await open_local(chosen.state_dir / "quarry.db")
        await store.update(replace(disk, spec=replace(disk.spec, claimed=False)))
        await store.close()
        told = await until(
            chosen, folder / "d.img", lambda disk: any(c.type == "Released" for c in disk.status.conditions)
        )
        assert ready(told)
        assert any("take it out of `file_disks`" in each.message for each in told.status.conditions)
