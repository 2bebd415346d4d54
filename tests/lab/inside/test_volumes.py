"""Volumes through CSI on the kernel's NVMe/TCP host: their life, and what they survive."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from grpc import StatusCode

from agent.csi.client import CallFailed, CsiClient
from agent.csi.pb import csi_pb2 as csi

from .node import MIB, NAME, Node, Pod
from .tools import Fio, run, until

_numbers = itertools.count(1)
MakePod = Callable[..., Awaitable[Pod]]


@pytest.fixture(scope="module")
def node(kind: str) -> Iterator[Node]:
    node = Node(kind)
    try:
        node.start()
        yield node
    finally:
        print(f"--- agent log ({kind})\n{node.log()[-20000:]}")
        node.close()


@pytest.fixture
async def client(node: Node) -> AsyncIterator[CsiClient]:
    async with CsiClient(node.endpoint, timeout_s=120) as client:
        await node.ready(client)
        yield client


@pytest.fixture
async def pod(node: Node, client: CsiClient) -> AsyncIterator[MakePod]:
    """Makes a volume and takes it to its pod."""
    made: list[Pod] = []

    async def make(fs_type: str = "", size_bytes: int = 64 * MIB) -> Pod:
        made.append(Pod(node, client, f"v{next(_numbers)}", fs_type=fs_type, size_bytes=size_bytes))
        await made[-1].start()
        return made[-1]

    yield make
    left = [await each.sweep() for each in made]
    for each in made:
        if each.volume_id:
            await client.unpublish(each.volume_id)
            await client.delete_volume(each.volume_id)
    assert not any(left), left


@pytest.mark.parametrize(("fs_type", "size_bytes"), [("ext4", 64 * MIB), ("xfs", 320 * MIB)])
async def test_filesystem(pod: MakePod, node: Node, client: CsiClient, fs_type: str, size_bytes: int) -> None:
    mine = await pod(fs_type, size_bytes)
    digest = _write(mine.target / "data", 8 * MIB)
    before = (await client.stats(mine.volume_id, mine.target)).usage[0].total

    await client.expand(mine.volume_id, 2 * size_bytes)
    await until(lambda: node.kernel_size(mine.volume_id), lambda size: size == 2 * size_bytes)
    assert await client.node_expand(mine.volume_id, mine.target) == 2 * size_bytes
    assert (await client.stats(mine.volume_id, mine.target)).usage[0].total > before + size_bytes * 0.8
    assert _digest(mine.target / "data") == digest

    await mine.detach()
    await mine.gone()
    await mine.attach()
    assert _digest(mine.target / "data") == digest
    assert node.kernel_size(mine.volume_id) == 2 * size_bytes
    await mine.detach()
    await mine.gone()
    await client.delete_volume(mine.volume_id)


async def test_discard(pod: MakePod) -> None:
    mine = await pod("ext4")
    digest = _write(mine.target / "kept", 4 * MIB)
    _write(mine.target / "freed", 16 * MIB)
    (mine.target / "freed").unlink()
    await run("sync", "-f", mine.target)
    assert "trimmed" in await run("fstrim", "-v", mine.target)
    assert _digest(mine.target / "kept") == digest
    await mine.detach()
    await mine.attach()
    assert _digest(mine.target / "kept") == digest
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
    _write(mine.target / "data", MIB)
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
    digest = _write(mine.target / "kept", MIB)
    (mine.target / "lost").write_bytes(os.urandom(4 * MIB))
    await client.unpublish(mine.volume_id, NAME)
    await until(lambda: node.states(mine.volume_id), lambda states: "live" not in states)
    async with asyncio.timeout(60):
        await client.node_unpublish(mine.volume_id, mine.target)
        await client.unstage(mine.volume_id, mine.staging)
    await mine.gone()
    await mine.attach()
    assert _digest(mine.target / "kept") == digest
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
    await _patiently(lambda: client.unstage(mine.volume_id, mine.staging))
    await mine.gone()
    await mine.attach()
    assert _digest(mine.target / "unsynced") == hashlib.sha256(data).hexdigest()
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


async def _patiently(call: Callable[[], Awaitable[None]], timeout_s: float = 60.0) -> None:
    """Repeat a call while the answer is "ask again", as kubelet does."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return await call()
        except CallFailed as error:
            again = error.code in (StatusCode.DEADLINE_EXCEEDED, StatusCode.UNAVAILABLE, StatusCode.ABORTED)
            if not again or time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.2)


async def test_published_again_goes_on(pod: MakePod, node: Node, client: CsiClient) -> None:
    mine = await pod("ext4")
    await client.unpublish(mine.volume_id, NAME)
    await until(lambda: node.states(mine.volume_id), lambda states: states == ["connecting"])
    await mine.attach()
    await until(lambda: node.states(mine.volume_id), lambda states: states == ["live"])
    _write(mine.target / "data", MIB)
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


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
@pytest.mark.parametrize("victim", ["target", "agent"])
async def test_killed_under_a_mounted_filesystem(
    pod: MakePod, node: Node, client: CsiClient, victim: str, fs_type: str
) -> None:
    """SIGKILL in the middle of verified writes: they wait, and go on without an error."""
    mine = await pod(fs_type, 320 * MIB)
    device = node.device(mine.volume_id)
    seconds = 40 if node.kind == "embedded" else 20
    options: dict[str, str | int] = {"time_based": 1, "runtime": seconds, "verify_backlog": 256, "fsync": 32}
    async with Fio(mine.target / "fio", size="16m", options=options) as fio:
        await until(fio.written, lambda count: count > MIB // 2)
        if victim == "target":
            node.kill_target()
        else:
            node.kill_agent()
            node.start_agent()
        await node.ready(client)
        await until(lambda: node.states(mine.volume_id), lambda states: states == ["live"])
        assert node.device(mine.volume_id) == device
        before = fio.written()
        await until(fio.written, lambda count: count > before)
        result = await fio.result()
    print(f"{node.kind} {victim} {fs_type}: longest operation {result.longest_s:.1f} s")
    assert result.error == 0
    if victim == "target" or node.kind == "embedded":
        assert result.longest_s > 0.5, "the target died while nothing was being written"
    assert "ro," not in _mount_options(mine.target)
    digest = _write(mine.target / "after", MIB)
    await mine.detach()
    await mine.gone()
    await mine.attach()
    assert _digest(mine.target / "after") == digest
    await mine.detach()
    await mine.gone()


def _write(path: Path, size: int) -> str:
    data = os.urandom(size)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()


def _digest(path: Path) -> str:
    """Of what the device has: the page cache is dropped first."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _mount_options(path: Path) -> str:
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return next(line[3] + "," for line in lines if line[1] == str(path))
