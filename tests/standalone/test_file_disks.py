"""File disks: blank ones become pools, pools are found again, and anything else is refused and left as it is."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agent.config.settings import FileDisk, PoolSettings, Settings
from agent.csi.client import CallFailed, CsiClient
from agent.daemon.standalone import Standalone
from agent.disks import files
from agent.errors import FailedPrecondition, InvalidArgument
from agent.model import Disk, DiskPhase
from agent.store.local import open_local

MIB = 1 << 20
Make = Callable[..., Settings]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sparse(path: Path, size_bytes: int = 128 * MIB) -> Path:
    with path.open("wb") as file:
        file.truncate(size_bytes)
    return path


async def disks(settings: Settings) -> dict[str, Disk]:
    store = await open_local(settings.state_dir / "quarry.db")
    try:
        return {disk.status.path: disk for disk in await store.list(Disk)}
    finally:
        await store.close()


def with_ext4(path: Path) -> None:
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 not found")
    subprocess.run(["mkfs.ext4", "-q", "-F", str(path)], check=True)


def with_a_byte_at(offset: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(b"\x01")

    return write


@pytest.mark.parametrize(
    "occupy",
    [with_ext4, with_a_byte_at(0), with_a_byte_at(128 * MIB - 1), with_a_byte_at(64 * MIB)],
    ids=["ext4", "first byte", "last byte", "byte in the middle"],
)
async def test_a_file_that_carries_anything_is_refused_and_left_alone(
    occupy: Callable[[Path], None], settings: Make, folder: Path
) -> None:
    foreign = sparse(folder / "foreign.img")
    occupy(foreign)
    before = digest(foreign)
    chosen = settings(f"{foreign}:128MiB:hdd", f"{folder}/good.img:128MiB:ssd")
    async with Standalone(chosen) as node, CsiClient(chosen.csi_endpoint) as csi:
        await node.wait_ready(20)
        assert await csi.create_volume("on-the-good-one", 16 * MIB, {"tier": "ssd"})
        with pytest.raises(CallFailed, match="tier hdd"):
            await csi.create_volume("on-the-foreign-one", 16 * MIB, {"tier": "hdd"})
    assert digest(foreign) == before
    found = (await disks(chosen))[str(foreign)]
    assert found.status.phase is DiskPhase.FAILED
    assert "already carries data" in found.status.message


async def test_a_pool_is_found_again_with_its_volumes(settings: Make, folder: Path) -> None:
    chosen = settings(f"{folder}/d0.img:128MiB:ssd")
    async with Standalone(chosen) as node, CsiClient(chosen.csi_endpoint) as csi:
        await node.wait_ready(20)
        volume = await csi.create_volume("v", 16 * MIB, {"tier": "ssd"})
    pool = (await disks(chosen))[f"{folder}/d0.img"].status.pool
    async with Standalone(chosen) as node, CsiClient(chosen.csi_endpoint) as csi:
        await node.wait_ready(20)
        assert [entry.volume.volume_id for entry in (await csi.list_volumes()).entries] == [volume]
    assert (await disks(chosen))[f"{folder}/d0.img"].status.pool.uuid == pool.uuid


async def test_half_a_pool_of_ours_is_made_again(settings: Make, folder: Path) -> None:
    """A crash while the pool was being written: the Disk says so, so what lies there is ours to overwrite."""
    chosen = settings(f"{folder}/d0.img:128MiB:ssd")
    disk = files.prepare(chosen.file_disks[0], chosen.node_name)
    with_a_byte_at(8192)(folder / "d0.img")
    chosen.state_dir.mkdir()
    store = await open_local(chosen.state_dir / "quarry.db")
    await store.create(replace(disk, status=replace(disk.status, phase=DiskPhase.FORMATTING)))
    await store.close()
    async with Standalone(chosen) as node, CsiClient(chosen.csi_endpoint) as csi:
        await node.wait_ready(20)
        assert await csi.create_volume("v", 16 * MIB, {"tier": "ssd"})


async def test_a_disk_no_longer_configured_is_remembered_as_missing(settings: Make, folder: Path) -> None:
    chosen = settings(f"{folder}/d0.img:128MiB:ssd", f"{folder}/d1.img:128MiB:hdd")
    async with Standalone(chosen) as node:
        await node.wait_ready(20)
    fewer = chosen.model_copy(update={"file_disks": chosen.file_disks[:1]})
    async with Standalone(fewer) as node:
        await node.wait_ready(20)
    assert (await disks(chosen))[f"{folder}/d1.img"].status.phase is DiskPhase.MISSING
    async with Standalone(chosen) as node:
        await node.wait_ready(20)
    assert (await disks(chosen))[f"{folder}/d1.img"].status.phase is DiskPhase.READY


async def test_a_second_agent_on_the_same_state_is_refused(settings: Make, folder: Path) -> None:
    chosen = settings(f"{folder}/d0.img:128MiB:ssd")
    async with Standalone(chosen):
        with pytest.raises(FailedPrecondition, match="another agent"):
            await Standalone(chosen).start()


@pytest.mark.parametrize("what", ["folder", "device", "small", "nowhere"])
def test_what_cannot_be_a_file_disk_is_refused(what: str, folder: Path) -> None:
    paths = {
        "folder": folder,
        "device": Path("/dev/null"),
        "small": sparse(folder / "small.img", MIB),
        "nowhere": folder / "missing" / "d0.img",
    }
    with pytest.raises(InvalidArgument, match="file-disk"):
        files.prepare(FileDisk.parse(f"{paths[what]}:128MiB:ssd"), "node-a")


def test_a_path_means_another_file_on_another_node(folder: Path) -> None:
    disk = FileDisk.parse(f"{folder}/d0.img:128MiB:hdd")
    names = {files.prepare(disk, node).meta.name for node in ("node-a", "node-b", "node-a")}
    assert len(names) == 2


def test_a_missing_file_is_made_sparse_and_kept_on_repetition(folder: Path) -> None:
    wanted = FileDisk.parse(f"{folder}/d0.img:4GiB:ssd")
    first = files.prepare(wanted, "node-a")
    assert (folder / "d0.img").stat().st_size == 4 << 30
    assert (folder / "d0.img").stat().st_blocks == 0
    assert files.prepare(wanted, "node-a") == first


async def test_a_refused_creation_gives_no_right_to_what_comes_later(settings: Make, folder: Path) -> None:
    """The target refused to make the pool; whatever is put on the disk since is somebody's data."""
    given = settings(f"{folder}/d0.img:128MiB:ssd")
    too_coarse = given.model_copy(update={"pool": PoolSettings(cluster_bytes=1 << 30)})
    async with Standalone(too_coarse) as agent:
        await agent.wait_ready(30)
    file = folder / "d0.img"
    assert (await disks(given))[str(file)].status.phase is DiskPhase.FAILED
    sparse(file)
    with_a_byte_at(MIB)(file)
    before = digest(file)
    async with Standalone(given) as agent:
        await agent.wait_ready(30)
    disk = (await disks(given))[str(file)]
    assert disk.status.phase is DiskPhase.FAILED
    assert "already carries data" in disk.status.message
    assert digest(file) == before
