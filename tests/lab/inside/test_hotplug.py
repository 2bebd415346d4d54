"""An NVMe disk that is plugged in, pulled out under I/O and put into another slot, while fio runs on its neighbour."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from agent.csi.client import CsiClient
from agent.errors import Conflict
from agent.model import Disk, DiskPhase, Tier
from agent.store.local import LocalStore, open_local
from tests.contract.targets import find_spdk_tgt

from .hardware import SERIALS, quarry
from .node import MIB, Node, Pod
from .slots import SERIAL, SLOTS, HotDisk
from .tools import ENDLESS, Fio, digest, patiently, write

NEIGHBOUR = SERIALS["b"]
FAST_S = 2.0
"""Within this time everything follows what happens to a disk."""

LOOK_EVERY_S = 0.05
"""Looking takes time of the emulated processors that what is looked at needs too."""


@pytest.fixture
def own_node() -> Iterator[Node]:
    if find_spdk_tgt() is None:
        pytest.skip(
            "no spdk_tgt where the lab was started (SPDK_TGT or PATH); the embedded target has no block devices"
        )
    with Node("real", file_disk="64MiB:hdd").running() as node:
        yield node


@pytest.fixture
async def client(own_node: Node) -> AsyncIterator[CsiClient]:
    async with own_node.served() as client:
        yield client


@pytest.fixture
async def store(own_node: Node, client: CsiClient) -> AsyncIterator[LocalStore]:
    """The agent's database, as another process sees it."""
    store = await open_local(own_node.folder / "state" / "quarry.db")
    yield store
    await store.close()


@pytest.fixture
def hot() -> Iterator[HotDisk]:
    hot = HotDisk()
    yield hot
    hot.close()


async def until(store: LocalStore, serial: str, wanted: Callable[[Disk], bool], timeout_s: float = 60.0) -> Disk:
    """The record of a disk, once it is as wanted."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = [disk for disk in await store.list(Disk) if disk.status.serial == serial]
        if found and wanted(found[0]):
            return found[0]
        assert time.monotonic() < deadline, found
        await asyncio.sleep(LOOK_EVERY_S)


async def claim(store: LocalStore, serial: str, **spec: Any) -> None:
    while True:
        disk = await until(store, serial, lambda disk: True)
        try:
            await store.update(replace(disk, spec=replace(disk.spec, claimed=True, **spec)))
        except Conflict:
            continue
        break
    await until(store, serial, is_in(DiskPhase.READY))


async def release(node: Node, *serials: str) -> None:
    await quarry("disks", "release", *serials, "--state-dir", str(node.folder / "state"))


def is_in(*phases: DiskPhase) -> Callable[[Disk], bool]:
    return lambda disk: disk.status.phase in phases


async def until_told(client: CsiClient, volume_id: str, *, abnormal: bool) -> None:
    deadline = time.monotonic() + 60
    while (await client.get_volume(volume_id)).status.volume_condition.abnormal is not abnormal:
        assert time.monotonic() < deadline
        await asyncio.sleep(LOOK_EVERY_S)


async def timed(happens: Callable[[], None], waits: Callable[[], Any]) -> float:
    """Seconds from when something was asked of the machine until all that follows has followed."""
    began = time.monotonic()
    await asyncio.to_thread(happens)
    await waits()
    return time.monotonic() - began


async def test_plugged_in_pulled_out_and_back_elsewhere(
    own_node: Node, client: CsiClient, store: LocalStore, hot: HotDisk
) -> None:
    await claim(store, NEIGHBOUR)
    beside = Pod(own_node, client, "v-beside", fs_type="ext4", size_bytes=64 * MIB, tier="nvme")
    mine = Pod(own_node, client, "v-hot", fs_type="ext4", size_bytes=64 * MIB, tier="ssd")
    try:
        await beside.start()
        async with Fio(beside.file, size="16m", options=ENDLESS) as fio:
            await fio.goes_on()
            available = is_in(DiskPhase.AVAILABLE)
            added_s = await timed(lambda: hot.plug(SLOTS[0]), lambda: until(store, SERIAL, available))
            where = (await until(store, SERIAL, available)).status.pci_addresses

            await claim(store, SERIAL, tier_override=Tier.SSD)
            await mine.start()
            written = write(mine.target / "kept", 4 * MIB)
            async with Fio(mine.file, size="16m", options=ENDLESS) as victim:
                await victim.goes_on()

                async def missing() -> None:
                    await until(store, SERIAL, is_in(DiskPhase.MISSING))
                    await until_told(client, mine.volume_id, abnormal=True)

                pulled_s = await timed(hot.pull, missing)
                assert not (await client.get_volume(beside.volume_id)).status.volume_condition.abnormal
            await mine.detach()
            await fio.goes_on()

            async def back() -> None:
                await until(store, SERIAL, is_in(DiskPhase.READY))
                await until_told(client, mine.volume_id, abnormal=False)

            back_s = await timed(lambda: hot.plug(SLOTS[1]), back)
            assert (await until(store, SERIAL, is_in(DiskPhase.READY))).status.pci_addresses != where
            await patiently(mine.attach, 120)
            assert digest(mine.target / "kept") == written
            await mine.detach()
            await mine.check()
            await fio.goes_on()
            result = await fio.finish()
        print(f"added {added_s:.2f} s, pulled {pulled_s:.2f} s, back {back_s:.2f} s; fio {result}")
        assert result.error == 0
        assert max(added_s, pulled_s) < FAST_S
        # A pool is loaded and its volumes rebuilt, by processors 13 times slower than others.
        assert back_s < 13 * FAST_S
        await beside.detach()
        for pod in (mine, beside):
            await client.delete_volume(pod.volume_id)
    finally:
        for pod in (mine, beside):
            await pod.sweep()
    await release(own_node, NEIGHBOUR, SERIAL)
