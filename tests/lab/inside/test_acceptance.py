"""What is promised of volumes in use: one test for each promise, for every filesystem and frontend, under verified I/O.

fio writes with checksums and reads back what it wrote; it ends with an error when an operation fails or a block is not
what it was. Afterwards the filesystem's own checker finds nothing.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import pytest

from agent.csi.client import CsiClient, from_snapshot

from .conftest import SIZES, MakePod
from .node import MIB, Node, Pod
from .tools import ENDLESS, Fio, digest, mount_options, until, write

OVER_NETWORK = [("nvme-tcp", fs_type) for fs_type in (*SIZES, "")]
ALL = [*OVER_NETWORK, *(("ublk", fs_type) for fs_type in (*SIZES, ""))]
AGENT_KILLED = [("nvme-tcp", "ext4"), ("nvme-tcp", "xfs"), ("ublk", "ext4"), ("ublk", "")]
MakeVolume = Callable[[str, str], Awaitable[Pod]]


def each_of(kinds: list[tuple[str, str]]) -> pytest.MarkDecorator:
    params = [
        pytest.param(
            frontend,
            fs_type,
            id=f"{frontend}-{fs_type or 'raw'}",
            marks=[pytest.mark.ublk] if frontend == "ublk" else [],
        )
        for frontend, fs_type in kinds
    ]
    return pytest.mark.parametrize(("frontend", "fs_type"), params)


@pytest.fixture
def volume(pod: MakePod) -> MakeVolume:
    async def make(frontend: str, fs_type: str) -> Pod:
        return await pod(fs_type, SIZES.get(fs_type, 64 * MIB), frontend)

    return make


def verified_writes(mine: Pod) -> Fio:
    """Goes on until the test has seen enough."""
    return Fio(mine.file, size="16m", options=ENDLESS | {"fsync": 32})


async def busy(fio: Fio) -> None:
    await until(fio.written, lambda count: count > MIB // 2)


async def ends_clean(node: Node, mine: Pod, fio: Fio) -> float:
    """No error in what fio did, and none in the filesystem. Returns its longest operation in seconds."""
    result = await fio.finish()
    print(f"{node.kind} {mine.frontend} {mine.fs_type if not mine.block else 'raw'}: longest {result.longest_s:.2f} s")
    assert result.error == 0
    kept = ""
    if not mine.block:
        assert "ro," not in mount_options(mine.target)
        kept = write(mine.target / "after", MIB)
    await mine.detach()
    await mine.gone()
    await mine.check()
    if kept:
        await mine.attach()
        assert digest(mine.target / "after") == kept
        await mine.detach()
        await mine.gone()
    return result.longest_s


@each_of(OVER_NETWORK)
async def test_expanded_under_fio(
    volume: MakeVolume, node: Node, client: CsiClient, frontend: str, fs_type: str
) -> None:
    mine = await volume(frontend, fs_type)
    async with verified_writes(mine) as fio:
        await busy(fio)
        for times in (2, 3):
            size = times * mine.size_bytes
            await client.expand(mine.volume_id, size)
            assert await client.node_expand(mine.volume_id, mine.target) == size
            assert await until(mine.kernel_size, lambda found, size=size: found == size) == size
            assert (await client.stats(mine.volume_id, mine.target)).usage[0].total > 0.8 * size
        await fio.goes_on()
        await ends_clean(node, mine, fio)


@each_of(ALL)
async def test_snapshotted_under_fio(
    volume: MakeVolume, pod: MakePod, node: Node, client: CsiClient, frontend: str, fs_type: str
) -> None:
    """The snapshot of a mounted filesystem has all that was written before, synced or not, and is in order."""
    mine = await volume(frontend, fs_type)
    content = os.urandom(MIB)
    async with verified_writes(mine) as fio:
        await busy(fio)
        snapshots = []
        for number in range(2):
            if fs_type:
                (mine.target / f"unsynced{number}").write_bytes(content)
            snapshots.append(await client.create_snapshot(f"{mine.name}-{number}", mine.volume_id))
            assert snapshots[-1].ready_to_use
        await fio.goes_on()
        await ends_clean(node, mine, fio)
    for number, snapshot in enumerate(snapshots):
        restored = await pod(fs_type, mine.size_bytes, frontend, from_snapshot(snapshot.snapshot_id))
        if fs_type:
            assert (restored.target / f"unsynced{number}").read_bytes() == content
            assert not (restored.target / f"unsynced{number + 1}").exists()
            write(restored.target / "mine", MIB)
        await restored.detach()
        await restored.check()
    for snapshot in snapshots:
        await client.delete_snapshot(snapshot.snapshot_id)


@each_of(ALL)
async def test_target_killed_under_fio(
    volume: MakeVolume, node: Node, client: CsiClient, frontend: str, fs_type: str
) -> None:
    """SIGKILL: a pause, no error."""
    mine = await volume(frontend, fs_type)
    device = mine.device
    async with verified_writes(mine) as fio:
        await busy(fio)
        node.kill_target()
        await node.ready(client)
        await mine.served()
        await fio.goes_on()
        assert mine.device == device
        longest_s = await ends_clean(node, mine, fio)
    assert longest_s > 0.5, "the target died while nothing was being written"


@each_of(AGENT_KILLED)
async def test_agent_killed_under_fio(
    volume: MakeVolume, node: Node, client: CsiClient, frontend: str, fs_type: str
) -> None:
    """SIGKILL: with a target of its own nothing is noticed; the embedded one dies with the agent."""
    mine = await volume(frontend, fs_type)
    async with verified_writes(mine) as fio:
        await busy(fio)
        node.kill_agent()
        node.start_agent()
        await node.ready(client)
        await mine.served()
        await fio.goes_on()
        longest_s = await ends_clean(node, mine, fio)
    assert node.kind == "real" or longest_s > 0.5
