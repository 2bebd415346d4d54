"""The frontend ublk: a real target only, its devices found again by the agent and taken over by the next target."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from grpc import StatusCode

from agent.csi.client import CallFailed, CsiClient
from agent.csi.pb import csi_pb2 as csi
from agent.spdk import nvmf, ublk
from agent.spdk.client import Client

from .conftest import SIZES, MakePod
from .node import MIB, NAME, Node
from .tools import Failed, Fio, digest, patiently, run, write

pytestmark = pytest.mark.ublk


def devices() -> list[str]:
    return sorted(entry.name for entry in Path("/dev").iterdir() if entry.name.startswith(("ublkb", "ublkc")))


@pytest.mark.parametrize(("fs_type", "size_bytes"), [*SIZES.items(), ("", 64 * MIB)], ids=[*SIZES, "raw"])
async def test_there_and_back(pod: MakePod, client: CsiClient, fs_type: str, size_bytes: int) -> None:
    """Every call twice; it grows while it is nowhere attached, and only then."""
    mine = await pod(fs_type, size_bytes, "ublk")
    await mine.attach()
    assert len(devices()) == 2
    async with Fio(mine.file, size="8m", options={"bsrange": "4k-128k", "ioengine": "psync", "iodepth": 1}) as fio:
        assert (await fio.result()).error == 0
    kept = write(mine.target / "kept", MIB) if fs_type else ""
    with pytest.raises(CallFailed) as refused:
        await client.expand(mine.volume_id, 2 * size_bytes)
    assert refused.value.code is StatusCode.FAILED_PRECONDITION
    await mine.detach()
    await mine.detach()
    await mine.gone()
    await mine.check()
    await client.expand(mine.volume_id, 2 * size_bytes)
    await mine.attach()
    assert mine.kernel_size() == 2 * size_bytes
    assert await client.node_expand(mine.volume_id, mine.target) == 2 * size_bytes
    assert (await client.stats(mine.volume_id, mine.target)).usage[0].total > 1.6 * size_bytes
    assert not kept or digest(mine.target / "kept") == kept
    await mine.detach()
    await mine.gone()
    assert devices() == []


async def test_discards_are_refused(pod: MakePod) -> None:
    """As over NVMe/TCP (decision 0022); zeroes are written."""
    mine = await pod(frontend="ublk")
    await run("dd", "if=/dev/urandom", f"of={mine.target}", "bs=1M", "count=4", "oflag=direct")
    with pytest.raises(Failed, match="not supported"):
        await run("blkdiscard", "-o", "0", "-l", str(MIB), mine.target)
    await run("blkdiscard", "-z", "-o", "0", "-l", str(MIB), mine.target)
    assert await asyncio.to_thread(_first, mine.target, MIB) == bytes(MIB)
    await mine.detach()
    await mine.gone()


def _first(device: Path, length: int) -> bytes:
    with device.open("rb") as file:
        return file.read(length)


async def test_never_over_nvme_at_the_same_time(pod: MakePod, node: Node) -> None:
    mine = await pod("ext4", frontend="ublk")
    other = await pod("ext4")
    rpc = Client(node.socket)
    try:
        await rpc.start()
        await rpc.wait_connected(30)
        names = [found.nqn for found in await nvmf.list_subsystems(rpc)]
        assert [name for name in names if mine.volume_id in name] == []
        assert [name for name in names if other.volume_id in name] != []
        assert len(await ublk.list_all(rpc)) == 1
    finally:
        await rpc.close()
    for each in (mine, other):
        await each.detach()
        await each.gone()


async def test_several_volumes_keep_their_devices(pod: MakePod, node: Node, client: CsiClient) -> None:
    """Through a restart of the agent and of the target, the numbers of devices mixed up in between."""
    first, second, third = [await pod("ext4", frontend="ublk") for _ in range(3)]
    digests = {each.name: write(each.target / each.name, MIB) for each in (first, second, third)}
    await second.detach()
    fourth = await pod("ext4", frontend="ublk")
    digests[fourth.name] = write(fourth.target / fourth.name, MIB)
    await second.attach()
    node.kill_agent()
    node.kill_target()
    node.start_agent()
    await node.ready(client)
    for each in (first, second, third, fourth):
        assert await asyncio.to_thread(digest, each.target / each.name) == digests[each.name]
        await each.detach()
        await each.gone()
        await each.check()
    assert devices() == []


async def test_target_away_while_unstaged_loses_nothing(pod: MakePod, node: Node, client: CsiClient) -> None:
    mine = await pod("ext4", frontend="ublk")
    (mine.target / "unsynced").write_bytes(b"x" * MIB)
    with node.frozen_target():
        await client.node_unpublish(mine.volume_id, mine.target)
        request = csi.NodeUnstageVolumeRequest(volume_id=mine.volume_id, staging_target_path=str(mine.staging))
        with pytest.raises(CallFailed):
            await client.call("Node/NodeUnstageVolume", request, timeout_s=5)
    await patiently(lambda: client.unstage(mine.volume_id, mine.staging))
    await mine.gone()
    await mine.attach()
    assert (mine.target / "unsynced").read_bytes() == b"x" * MIB
    await mine.detach()


async def test_unpublished_while_the_target_is_away_ends(pod: MakePod, node: Node, client: CsiClient) -> None:
    """A forced detach: what was not written is lost, nothing hangs, the next stage makes a new device."""
    mine = await pod("ext4", frontend="ublk")
    kept = write(mine.target / "kept", MIB)
    (mine.target / "lost").write_bytes(b"x" * MIB)
    node.kill_target(again=False)
    try:
        await client.unpublish(mine.volume_id, NAME)
    except CallFailed as error:
        assert error.code is StatusCode.UNAVAILABLE  # recorded all the same: the target learns of it when it is back
    async with asyncio.timeout(100):
        await client.node_unpublish(mine.volume_id, mine.target)
        await patiently(lambda: client.unstage(mine.volume_id, mine.staging))
    node.start_target()
    await node.ready(client)
    await mine.gone()
    await mine.attach()
    assert digest(mine.target / "kept") == kept
    await mine.detach()
    await mine.gone()
    assert devices() == []


async def test_without_the_driver_it_says_so(pod: MakePod, node: Node, client: CsiClient) -> None:
    assert devices() == []
    node.kill_target()  # one that has served a device keeps the driver open
    await node.ready(client)
    await run("modprobe", "-r", "ublk_drv")
    try:
        with pytest.raises(CallFailed, match="modprobe ublk_drv") as error:
            await pod("ext4", frontend="ublk")
        assert error.value.code is StatusCode.FAILED_PRECONDITION
    finally:
        await run("modprobe", "ublk_drv")
