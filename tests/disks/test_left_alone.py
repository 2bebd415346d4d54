"""What is not certainly blank or certainly ours is left as it is, also when it becomes so at the last moment."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.model import Disk, DiskPhase
from agent.spdk import bdev
from agent.spdk.client import Client
from tests.contract.targets import Target
from tests.disks.between import Between
from tests.disks.loops import LoopDisk

MIB = 1 << 20
CREATE_POOL = "bdev_lvol_create_lvstore"


def ready(disk: Disk) -> bool:
    return disk.status.phase is DiskPhase.READY


def failed(disk: Disk) -> bool:
    return disk.status.phase is DiskPhase.FAILED


def why(disk: Disk) -> str:
    return next(each.reason for each in disk.status.conditions if each.type == "Usable")


def ext4(file: Path, folder: Path) -> bytes:
    """The beginning of an ext4 filesystem, as mkfs makes it."""
    image = folder / "ext4.img"
    with image.open("wb") as opened:
        opened.truncate(file.stat().st_size)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    with image.open("rb") as opened:
        return opened.read(64 << 10)


@pytest.mark.parametrize("moment", ["bdev_uring_create", "bdev_wait_for_examine"])
async def test_a_filesystem_that_appears_between_check_and_claim_is_seen(
    moment: str, start_node: Any, spdk_tgt: Target, make_disk: Callable[..., LoopDisk], folder: Path
) -> None:
    """It is written as by `dd`, which respects no hold; what any other program would do is the next test's."""
    disk = make_disk()
    made = ext4(disk.file, folder)
    between = Between(spdk_tgt.socket_path, folder / "b.sock")
    async with between.serving(), start_node(target=between) as node:
        await node.until(disk, lambda disk: disk.status.eligible)
        between.before[moment] = lambda: disk.write(0, made)
        await node.want(disk, claimed=True)
        refused = await node.until(disk, failed)
        assert moment not in between.before, "nothing happened"
        assert why(refused) == "Ineligible"
        assert "ext4" in refused.status.message
        assert CREATE_POOL not in between.passed
        assert disk.read(0, len(made)) == made
        async with Client(spdk_tgt.socket_path) as rpc:
            await rpc.wait_connected(5)
            assert [each.name for each in await bdev.list_all(rpc) if each.name.startswith("disk-")] == []


async def test_once_looked_at_a_disk_cannot_be_taken_by_others(
    start_node: Any, spdk_tgt: Target, make_disk: Callable[..., LoopDisk], folder: Path
) -> None:
    disk = make_disk()
    results: list[subprocess.CompletedProcess[str]] = []

    def take() -> None:
        argv = ["mkfs.ext4", "-q", disk.device]
        results.append(subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False))

    between = Between(spdk_tgt.socket_path, folder / "b.sock")
    between.before[CREATE_POOL] = take
    async with between.serving(), start_node(target=between, claim=[{"path": disk.device}]) as node:
        await node.until(disk, lambda disk: disk.status.eligible)
        await node.until(disk, ready)
        assert results[0].returncode != 0
        assert "in use" in results[0].stderr
        assert await node.csi.create_volume("v", 16 * MIB, {"tier": "ssd"})


async def test_a_copy_of_a_pool_is_refused_and_so_is_the_original_while_both_are_there(
    start_node: Any, make_disk: Callable[..., LoopDisk], folder: Path
) -> None:
    disk = make_disk()
    async with start_node() as node:
        await node.want(disk, claimed=True)
        await node.until(disk, ready)
        subprocess.run(["cp", "--sparse=always", disk.file, folder / "d1.img"], check=True)  # noqa: ASYNC221
        copy = make_disk("d1")
        found = await node.until(copy, lambda disk: True)
        assert not found.status.eligible
        assert "made on another disk" in found.status.reasons[0]
        await node.want(copy, claimed=True)
        refused = await node.until(copy, failed)
        assert why(refused) == "OtherPool"
        assert ready(await node.until(disk, lambda disk: True))


async def test_another_disk_in_the_place_of_a_pool_is_refused(
    start_node: Any, make_disk: Callable[..., LoopDisk], spdk_tgt: Target
) -> None:
    """Same identity, other content: a blank one, then a pool made elsewhere."""
    disk = make_disk()
    async with start_node() as node:
        await node.want(disk, claimed=True)
        pool = (await node.until(disk, ready)).status.pool
        disk.pull()
        await node.until(disk, lambda disk: disk.status.phase is DiskPhase.MISSING)
        disk.file.rename(disk.file.with_suffix(".kept"))
        LoopDisk(disk.file)
        disk.plug()
        refused = await node.until(disk, failed)
        assert why(refused) == "PoolLost"
        assert pool.uuid in refused.status.message
        assert disk.is_blank()


async def test_rules_claim_what_fits_and_not_what_was_released_by_hand(
    start_node: Any, make_disk: Callable[..., LoopDisk]
) -> None:
    fits, small, excluded = make_disk("fits"), make_disk("small", 1200 * MIB), make_disk("excluded-one")
    rules = {"claim": [{"transport": "loop", "min_size": "2GiB"}], "exclude": [{"path": excluded.device}]}
    async with start_node(**rules) as node:
        await node.until(fits, ready)
        for other in (small, excluded):
            assert (await node.until(other, lambda disk: disk.status.eligible)).spec.claimed is None
        done = await node.quarry("release", fits.device)
        assert done.returncode == 0, done.stderr
        node.kill()
        await node.start()
        released = await node.until(fits, lambda disk: disk.status.phase is DiskPhase.AVAILABLE)
        assert released.spec.claimed is False
        assert fits.is_blank()


HALF_A_LABEL = b"SPDKBLOB" + struct.pack("<IIIQI", 3, 4096, 0, (1 << 64) - 1, 1 << 20) + bytes(24) + b"LVOLSTORE"
"""What SPDK writes first of a pool: a super block without attributes; everything after it is zeroes then."""


@pytest.mark.parametrize("left", ["half a pool", "half a pool, and power was lost", "a filesystem"])
async def test_what_a_creation_that_was_cut_off_left(
    left: str, start_node: Any, spdk_tgt: Target, make_disk: Callable[..., LoopDisk], folder: Path
) -> None:
    """Half a pool is made anew; what came onto the disk since is not ours, whatever the record says was begun."""
    disk = make_disk()
    found = ext4(disk.file, folder) if left == "a filesystem" else HALF_A_LABEL.ljust(4096, b"\0")
    between = Between(spdk_tgt.socket_path, folder / "b.sock")
    async with between.serving(), start_node(target=between) as node:

        def die() -> None:
            node.kill()
            disk.write(0, found)

        between.before[CREATE_POOL] = die
        between.stops_at = CREATE_POOL
        await node.want(disk, claimed=True)
        cut_off = await node.until(disk, lambda disk: disk.status.phase is DiskPhase.FORMATTING)
        await between.until_done()
        between.stops_at = ""
        if "power" in left:
            spdk_tgt.restart()
        await node.start()
        if left != "a filesystem":
            assert (await node.until(disk, ready)).status.pool.uuid
            return
        refused = await node.until(disk, lambda disk: disk.meta.version > cut_off.meta.version)
        assert "ext4" in refused.status.message
        assert why(refused) == "Ineligible"
        assert disk.read(0, len(found)) == found


async def test_the_embedded_target_is_not_given_block_devices(
    start_node: Any, make_disk: Callable[..., LoopDisk]
) -> None:
    disk = make_disk()
    async with start_node(target=None, claim=[{"path": disk.device}]) as node:
        refused = await node.until(disk, failed)
        assert why(refused) == "NoDriver"
        assert "needs spdk_tgt" in refused.status.message
        assert disk.is_blank()


async def test_nothing_is_written_while_nothing_changes(start_node: Any, make_disk: Callable[..., LoopDisk]) -> None:
    disk = make_disk()
    async with start_node() as node:
        found = await node.until(disk, lambda disk: disk.status.eligible)
        before = node.changes(found.meta.name)
        for _ in range(3):
            disk.tell()
            await node.quarry("list")
        disk.write(0, b"\x01")
        disk.tell()
        await node.until(disk, lambda disk: not disk.status.eligible)
        assert node.changes(found.meta.name) == before + 1
