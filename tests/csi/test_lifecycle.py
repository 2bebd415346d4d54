"""Volumes through the CSI socket of `quarry standalone` on the embedded target."""

# ruff: noqa: ASYNC240 - a test may block its loop for a stat
from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import stat
from pathlib import Path

import pytest
from grpc import StatusCode

from agent.csi.client import CallFailed, Mode, capability
from agent.csi.pb import csi_pb2 as csi

from .conftest import NODE, Machine

MIB = 1 << 20
GIB = 1 << 30
LOOP = {"frontend": "loop"}

as_root = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root"),
    pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="this kernel has no loop devices"),
]


async def test_probe_and_controller_life(any_machine: Machine) -> None:
    client = any_machine.client
    assert await client.probe()
    before = await client.capacity({"tier": "nvme", "provisioning": "thick"})
    volume_id = await client.create_volume("a/b", 64 * MIB, {"provisioning": "thick"})
    assert await client.create_volume("a/b", 64 * MIB, {"provisioning": "thick"}) == volume_id
    assert await client.capacity({"tier": "nvme", "provisioning": "thick"}) <= before - 64 * MIB
    context = await client.publish(volume_id, NODE)
    assert (context["address"], context["port"]) == ("127.0.0.1", str(any_machine.settings.nvmf_port))
    grown = await client.expand(volume_id, 128 * MIB)
    assert grown.capacity_bytes == 128 * MIB
    with pytest.raises(CallFailed) as in_use:
        await client.delete_volume(volume_id)
    assert in_use.value.code is StatusCode.FAILED_PRECONDITION
    await client.unpublish(volume_id, NODE)
    await client.delete_volume(volume_id)
    assert await client.capacity({"tier": "nvme", "provisioning": "thick"}) == before
    assert not (await client.list_volumes()).entries


async def test_refusals_of_the_real_domain(any_machine: Machine) -> None:
    client = any_machine.client

    async def code(awaitable: object) -> StatusCode:
        with pytest.raises(CallFailed) as caught:
            await awaitable  # type: ignore[misc]
        return caught.value.code

    volume_id = await client.create_volume("v", 64 * MIB)
    assert await code(client.create_volume("v", 128 * MIB)) is StatusCode.ALREADY_EXISTS
    assert await code(client.create_volume("v", 64 * MIB, {"tier": "ssd"})) is StatusCode.ALREADY_EXISTS
    too_much = await code(client.create_volume("w", 1 << 50))
    assert too_much in (StatusCode.OUT_OF_RANGE, StatusCode.RESOURCE_EXHAUSTED)
    assert await code(client.create_volume("w", MIB + 1, limit_bytes=MIB + 2)) is StatusCode.OUT_OF_RANGE
    assert await code(client.publish(volume_id, "node-x")) is StatusCode.NOT_FOUND
    assert await code(client.publish("vol-" + "0" * 32, NODE)) is StatusCode.NOT_FOUND
    assert await code(client.expand(volume_id, 1 << 50)) is StatusCode.OUT_OF_RANGE
    await client.publish(volume_id, NODE)
    assert await code(client.publish(volume_id, NODE, readonly=True)) is StatusCode.ALREADY_EXISTS
    assert len((await client.list_volumes()).entries) == 1


async def test_many_callers_of_one_name_get_one_volume(any_machine: Machine) -> None:
    async def create() -> str:
        while True:
            try:
                return await any_machine.client.create_volume("same", 64 * MIB)
            except CallFailed as error:
                if error.code is not StatusCode.ABORTED:
                    raise

    ids = await asyncio.gather(*(create() for _ in range(16)))
    assert len(set(ids)) == 1
    assert len((await any_machine.client.list_volumes()).entries) == 1


async def test_a_given_up_call_can_be_repeated(any_machine: Machine) -> None:
    request = csi.CreateVolumeRequest(
        name="v",
        capacity_range=csi.CapacityRange(required_bytes=64 * MIB),
        volume_capabilities=[
            csi.VolumeCapability(
                block=csi.VolumeCapability.BlockVolume(),
                access_mode=csi.VolumeCapability.AccessMode(mode=csi.VolumeCapability.AccessMode.SINGLE_NODE_WRITER),
            )
        ],
    )
    for timeout_s in (0.0001, 0.001, 0.003, 0.01):
        try:
            await any_machine.client.call("Controller/CreateVolume", request, timeout_s=timeout_s)
        except CallFailed as error:
            assert error.code in (StatusCode.DEADLINE_EXCEEDED, StatusCode.ABORTED)  # the other one is still at it
    await any_machine.client.create_volume("v", 64 * MIB, block=True)
    assert len((await any_machine.client.list_volumes()).entries) == 1


class TestMounted:
    pytestmark = as_root

    @pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
    async def test_filesystem(self, machine: Machine, fs_type: str) -> None:
        if not shutil.which(f"mkfs.{fs_type}"):
            pytest.skip(f"mkfs.{fs_type} is not installed")
        client, size = machine.client, 512 * MIB  # xfs refuses less than 300 MiB
        staging, target = _paths(machine)
        volume_id = await client.create_volume("fs", size, LOOP, fs_type=fs_type)
        await client.publish(volume_id, NODE)
        for _ in range(2):
            await client.stage(volume_id, staging, fs_type=fs_type)
            await client.node_publish(volume_id, staging, target, fs_type=fs_type)
        assert os.path.ismount(target)
        data = os.urandom(8 * MIB)
        (target / "file").write_bytes(data)
        before = (await client.stats(volume_id, target)).usage[0]
        assert 0 < before.used < before.total <= size
        await client.expand(volume_id, 2 * size)
        if fs_type == "xfs" or _may_grow_mounted_ext4():
            assert await client.node_expand(volume_id, target) == 2 * size
            assert (await client.stats(volume_id, target)).usage[0].total > before.total + size // 2
        else:
            with pytest.raises(CallFailed) as refused:
                await client.node_expand(volume_id, target)
            assert refused.value.code is StatusCode.FAILED_PRECONDITION
        await _take_down(machine, volume_id, staging, target)
        await client.stage(volume_id, staging, fs_type=fs_type)
        await client.node_publish(volume_id, staging, target, readonly=True, fs_type=fs_type)
        assert (await client.stats(volume_id, target)).usage[0].total > before.total + size // 2
        read = (target / "file").read_bytes()
        assert hashlib.sha256(read).digest() == hashlib.sha256(data).digest()
        with pytest.raises(OSError, match="Read-only"):
            (target / "other").touch()
        await _take_down(machine, volume_id, staging, target)
        await client.unpublish(volume_id, NODE)
        await client.delete_volume(volume_id)

    async def test_block(self, machine: Machine) -> None:
        client = machine.client
        staging, target = _paths(machine)
        volume_id = await client.create_volume("raw", 64 * MIB, LOOP, block=True)
        await client.publish(volume_id, NODE, block=True)
        for _ in range(2):
            await client.stage(volume_id, staging, block=True)
            await client.node_publish(volume_id, staging, target, block=True)
        assert stat.S_ISBLK(target.stat().st_mode)
        assert (await client.stats(volume_id, target)).usage[0].total == 64 * MIB
        data = os.urandom(MIB)
        with target.open("r+b", buffering=0) as device:
            device.write(data)
            os.fsync(device.fileno())
        await client.expand(volume_id, 128 * MIB)
        assert await client.node_expand(volume_id, target) == 128 * MIB
        with target.open("rb") as device:
            assert device.read(MIB) == data
            assert device.seek(0, os.SEEK_END) == 128 * MIB
        await _take_down(machine, volume_id, staging, target)
        await client.unpublish(volume_id, NODE)
        await client.delete_volume(volume_id)

    async def test_staging_without_permission_or_outside_the_roots(self, machine: Machine, tmp_path: Path) -> None:
        client = machine.client
        staging, _ = _paths(machine)
        volume_id = await client.create_volume("v", 64 * MIB, LOOP)
        with pytest.raises(CallFailed) as closed:
            await client.stage(volume_id, staging)
        assert closed.value.code is StatusCode.FAILED_PRECONDITION
        await client.publish(volume_id, NODE)
        link = machine.folder / "pods" / "link"
        link.symlink_to(tmp_path)
        for path in (tmp_path / "elsewhere", link / "inside", staging / ".." / ".." / "up", Path("relative")):
            with pytest.raises(CallFailed) as outside:
                await client.stage(volume_id, path)
            assert outside.value.code is StatusCode.INVALID_ARGUMENT, path

    async def test_a_read_only_attachment_is_enforced_on_the_node(self, machine: Machine) -> None:
        client = machine.client
        staging, target = _paths(machine)
        volume_id = await client.create_volume("v", 64 * MIB, LOOP)
        await client.publish(volume_id, NODE)
        await client.stage(volume_id, staging)  # formatted while it may be written
        await client.unstage(volume_id, staging)
        await client.unpublish(volume_id, NODE)
        await client.publish(volume_id, NODE, readonly=True)
        await client.stage(volume_id, staging)
        await client.node_publish(volume_id, staging, target)
        with pytest.raises(OSError, match="Read-only"):
            (target / "file").touch()
        await _take_down(machine, volume_id, staging, target)

    async def test_a_single_writer_has_one_target(self, machine: Machine) -> None:
        client = machine.client
        staging, target = _paths(machine)
        volume_id = await client.create_volume("v", 64 * MIB, LOOP)
        mode = Mode.SINGLE_NODE_SINGLE_WRITER
        await client.publish(volume_id, NODE, mode=mode)
        await client.stage(volume_id, staging)
        request = csi.NodePublishVolumeRequest(
            volume_id=volume_id,
            staging_target_path=str(staging),
            target_path=str(target),
            volume_capability=capability(mode=mode),
        )
        await client.call("Node/NodePublishVolume", request)
        await client.call("Node/NodePublishVolume", request)
        request.target_path = f"{target}-2"
        with pytest.raises(CallFailed) as second:
            await client.call("Node/NodePublishVolume", request)
        assert second.value.code is StatusCode.FAILED_PRECONDITION
        assert not Path(request.target_path).exists()
        await _take_down(machine, volume_id, staging, target)


def _may_grow_mounted_ext4() -> bool:
    """Whether we have CAP_SYS_RESOURCE (24), which the kernel wants for it and containers often drop."""
    (effective,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff")]
    return bool(int(effective.split()[1], 16) >> 24 & 1)


def _paths(machine: Machine) -> tuple[Path, Path]:
    """Staging directory, made as kubelet makes it, and target path."""
    staging = machine.folder / "pods" / "staging"
    staging.mkdir(exist_ok=True)
    return staging, machine.folder / "pods" / "target"


async def _take_down(machine: Machine, volume_id: str, staging: Path, target: Path) -> None:
    for _ in range(2):
        await machine.client.node_unpublish(volume_id, target)
    assert not target.exists()
    for _ in range(2):
        await machine.client.unstage(volume_id, staging)
    assert not os.path.ismount(staging)
