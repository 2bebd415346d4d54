"""Volumes through CSI on the kernel's NVMe/TCP host: their life, and what they survive."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time

import pytest
from grpc import StatusCode

from agent.csi.client import CallFailed, CsiClient
from agent.csi.pb import csi_pb2 as csi

from .conftest import SIZES, MakePod
from .node import MIB, NAME, Node, Pod
from .tools import Failed, Fio, digest, patiently, run, until, write


@pytest.mark.parametrize(("fs_type", "size_bytes"), SIZES.items())
async def test_filesystem(pod: MakePod, node: Node, client: CsiClient, fs_type: str, size_bytes: int) -> None:
    mine = await pod(fs_type, size_bytes)
    kept = write(mine.target / "data", 8 * MIB)
    before = (await client.stats(mine.volume_id, mine.target)).usage[0].total

    await client.expand(mine.volume_id, 2 * size_bytes)
    await until(lambda: node.kernel_size(mine.volume_id), lambda size: size == 2 * size_bytes)
    assert await client.node_expand(mine.volume_id, mine.target) == 2 * size_bytes
    assert (await client.stats(mine.volume_id, mine.target)).usage[0].total > before + size_bytes * 0.8
    assert digest(mine.target / "data") == kept

    await mine.detach()
    await mine.gone()
    await mine.attach()
    assert digest(mine.target / "data") == kept
    assert node.kernel_size(mine.volume_id) == 2 * size_bytes
    await mine.detach()
    await mine.gone()
    await client.delete_volume(mine.volume_id)


async def test_discards_are_refused(pod: MakePod) -> None:
    """They would show what was discarded to whoever gets the blocks next (decision 0022). Nothing else suffers."""
    mine = await pod("ext4")
    kept = write(mine.target / "kept", 4 * MIB)
    write(mine.target / "freed", 16 * MIB)
    (mine.target / "freed").unlink()
    await run("sync", "-f", mine.target)
    with pytest.raises(Failed, match="not supported"):
        await run("fstrim", "-v", mine.target)
    assert digest(mine.target / "kept") == kept
    await mine.detach()
    await mine.attach()
    assert digest(mine.target / "kept") == kept
    await mine.detach()


async def test_raw_block(pod: MakePod, node: Node, client: CsiClient) -> None:
    mine = await pod()
    async with Fio(mine.target, size="16m", options={"bsrange": "4k-128k", "iodepth": 1, "ioengine": "psync"}) as fio:
        assert (await fio.result()).error == 0
    await client.expand(mine.volume_id, 128 * MIB)
    assert await client.node_expand(mine.volume_id, mine.target) == 128 * MIB
    assert (await client.stats(mine.volume_id, mine.target)).usage[0].total == 128 * MIB
    await mine.detach()
    await mine.gone()


async def test_every_call_twice(pod: MakePod, client: CsiClient) -> None:
    mine = await pod("ext4")
    await mine.attach()
    write(mine.target / "data", MIB)
    await mine.detach()
    await mine.detach()
    await mine.gone()


async def test_unpublish_cuts_an_idle_raw_volume(pod: MakePod, node: Node, client: CsiClient) -> None:
    mine = await pod()
    await client.unpublish(mine.volume_id, NAME)
    await until(lambda: node.states(mine.volume_id), lambda states: "live" not in states)
    await client.node_unpublish(mine.volume_id, mine.target)
    await client.unstage(mine.volume_id, mine.staging)
    await mine.gone()


@pytest.mark.parametrize(("fs_type", "size_bytes"), [("ext4", 64 * MIB), ("xfs", 320 * MIB)])
async def test_unpublish_under_a_busy_filesystem(
    pod: MakePod, node: Node, client: CsiClient, fs_type: str, size_bytes: int
) -> None:
    """A forced detach: data that was not written yet is lost, but nothing hangs and the way back is free."""
    mine = await pod(fs_type, size_bytes)
    kept = write(mine.target / "kept", MIB)
    (mine.target / "lost").write_bytes(os.urandom(4 * MIB))
    await client.unpublish(mine.volume_id, NAME)
    await until(lambda: node.states(mine.volume_id), lambda states: "live" not in states)
    async with asyncio.timeout(60):
        await client.node_unpublish(mine.volume_id, mine.target)
        await client.unstage(mine.volume_id, mine.staging)
    await mine.gone()
    await mine.attach()
    assert digest(mine.target / "kept") == kept
    await mine.detach()
    await mine.gone()


@pytest.mark.parametrize(("fs_type", "size_bytes"), [("ext4", 64 * MIB), ("xfs", 320 * MIB)])
async def test_unstage_while_the_target_is_away_loses_nothing(
    pod: MakePod, node: Node, client: CsiClient, fs_type: str, size_bytes: int
) -> None:
    """The caller gives up and asks again: what was written must not be thrown away by detaching."""
    mine = await pod(fs_type, size_bytes)
    data = os.urandom(4 * MIB)
    (mine.target / "unsynced").write_bytes(data)  # before: a write may itself have to wait for the target
    with node.frozen_target():
        await until(lambda: node.states(mine.volume_id), lambda states: states == ["connecting"], timeout_s=60)
        await client.node_unpublish(mine.volume_id, mine.target)
        await _refused_as_unavailable(client, mine)
    await until(lambda: node.states(mine.volume_id), lambda states: states == ["live"])
    await patiently(lambda: client.unstage(mine.volume_id, mine.staging))
    await mine.gone()
    await mine.attach()
    assert digest(mine.target / "unsynced") == hashlib.sha256(data).hexdigest()
    await mine.detach()


async def _refused_as_unavailable(client: CsiClient, mine: Pod) -> None:
    """Unstage again and again, giving up on each call early, until the answer is that it is still being written."""
    request = csi.NodeUnstageVolumeRequest(volume_id=mine.volume_id, staging_target_path=str(mine.staging))
    deadline = time.monotonic() + 90
    codes: list[StatusCode] = []
    while StatusCode.UNAVAILABLE not in codes:
        assert time.monotonic() < deadline, codes
        with pytest.raises(CallFailed) as refused:
            await client.call("Node/NodeUnstageVolume", request, timeout_s=5)
        codes.append(refused.value.code)
        await asyncio.sleep(0.2)
    assert set(codes) <= {StatusCode.DEADLINE_EXCEEDED, StatusCode.UNAVAILABLE, StatusCode.ABORTED}


async def test_published_again_goes_on(pod: MakePod, node: Node, client: CsiClient) -> None:
    mine = await pod("ext4")
    await client.unpublish(mine.volume_id, NAME)
    await until(lambda: node.states(mine.volume_id), lambda states: states == ["connecting"])
    await mine.attach()
    await until(lambda: node.states(mine.volume_id), lambda states: states == ["live"])
    write(mine.target / "data", MIB)
    await mine.detach()
    await mine.gone()


async def test_staged_again_after_somebody_disconnected_it(pod: MakePod, node: Node, client: CsiClient) -> None:
    mine = await pod()
    await client.node_unpublish(mine.volume_id, mine.target)
    await run("nvme", "disconnect-all")
    await until(lambda: node.states(mine.volume_id), lambda states: not states)
    await mine.attach()
    async with Fio(mine.target, size="1m", options={"ioengine": "psync", "iodepth": 1}) as fio:
        assert (await fio.result()).error == 0
    await mine.detach()
    await mine.gone()
