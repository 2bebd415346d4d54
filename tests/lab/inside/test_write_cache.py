"""Disks with a volatile write cache, whose power is cut: what was not flushed is really lost (tests/lab/volatile.py).

The disks forget, and at some cuts the target dies with them; the rest of the machine lives on, so that there can be
many. The cut of the whole machine is in test_power_cut.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.host.nvme_admin import Command, to_controller
from agent.spdk import nvme_controller
from agent.spdk.client import Client

from .hardware import SERIALS, by_path, controller, give_back, quarry
from .node import MIB, Node, Pod
from .slots import SERIAL, SLOTS, HotDisk, Monitor
from .tools import run, until

CUTS = 20
WITH_TARGET = 4
"""One of so many cuts takes the target too, which then has to find its records on the disk."""
BYTES = 256 << 10
DRIVERS = ("kernel", "userspace")
PROTECTED = "disks: {known: [{path: '*', power_loss_protected: true}]}"
CACHE = 0x06
"""Feature identifier of the volatile write cache."""


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    monitor = Monitor()
    yield monitor
    monitor.close()


MakeNode = Callable[..., Node]


@pytest.fixture
def make_node(vfio: None, hugepages: None) -> Iterator[MakeNode]:
    made: list[Node] = []
    address = controller(SERIALS["b"])

    def make(config: str = "{}") -> Node:
        node = Node("real", file_disk="64MiB:hdd", target_args=["-s", "768"], config=config)
        made.append(node)
        node.start()
        return node

    yield make
    for node in made:
        if node.folder.exists():
            print(f"--- agent log\n{node.log()[-20000:]}")
        node.close()
    give_back(address)


def state(node: Node) -> tuple[str, str]:
    return "--state-dir", str(node.folder / "state")


async def shown(node: Node, disk: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await quarry("disks", "show", disk, "-o", "json", *state(node)))
    return found


async def until_told(node: Node, disk: str, wanted: tuple[str, str], timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_s
    while (found := await told(node, disk)) != wanted:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.5)


async def told(node: Node, disk: str) -> tuple[str, str]:
    """The condition's status and reason."""
    conditions = {each["type"]: each for each in (await shown(node, disk))["conditions"]}
    return conditions["PowerLossSafe"]["status"], conditions["PowerLossSafe"]["reason"]


@asynccontextmanager
async def claimed(node: Node, disk: str, driver: str) -> AsyncIterator[str]:
    """The identity of a disk in service."""
    argv = ["disks", "claim", disk, "--driver", driver, "--yes", "-o", "json", *state(node)]
    (found,) = json.loads(await quarry(*argv))
    try:
        yield found["id"]
    finally:
        await quarry("disks", "release", found["id"], *state(node))
        if driver == "userspace":
            await quarry("disks", "unbind", found["id"], "--yes", *state(node))
            await run("udevadm", "settle")


class Controller:
    """The NVMe controller of a disk in service, spoken to past the agent."""

    def __init__(self, node: Node, disk: dict[str, Any]) -> None:
        self._node = node
        self._bdev = disk["bdev"]
        self._path = Path(disk["path"])

    async def is_on(self) -> bool:
        return bool(await self._send(Command(0x0A, cdw10=CACHE)) & 1)

    async def switch_on(self) -> None:
        await self._send(Command(0x09, cdw10=CACHE, cdw11=1))

    async def flush(self) -> None:
        if not self._bdev:
            descriptor = os.open(self._path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
            return
        name, _, nsid = self._bdev.rpartition("n")
        async with Client(self._node.socket, call_timeout_s=60) as rpc:
            await rpc.wait_connected(60)
            await nvme_controller.flush(rpc, name, int(nsid))

    async def _send(self, command: Command) -> int:
        if not self._bdev:
            answer = await to_controller(self._path)(command)
        else:
            async with Client(self._node.socket, call_timeout_s=60) as rpc:
                await rpc.wait_connected(60)
                answer = await nvme_controller.send(rpc, self._bdev.rpartition("n")[0], command)
        assert answer.status == 0, answer
        return answer.result


def overwrite(file: Path) -> bytes:
    """Write a file in place, so that nothing but its data changes, and sync it."""
    data = os.urandom(BYTES)
    with file.open("r+b" if file.exists() else "w+b") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())
    return data


def on_disk(file: Path) -> bytes:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(descriptor, BYTES, 0)
    finally:
        os.close(descriptor)


async def cut(node: Node, pod: Pod, monitor: Monitor, *, target: bool = True) -> int:
    """So many bytes are lost; returns when the volume is served again."""
    if not target:
        return monitor.lose_unflushed()
    node.kill_target(again=False)
    lost = monitor.lose_unflushed()
    node.start_target()
    await until(lambda: node.states(pod.volume_id), lambda states: states == ["live"], 120)
    return lost


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("driver", DRIVERS)
async def test_no_synced_file_is_lost(make_node: MakeNode, monitor: Monitor, driver: str) -> None:
    node = make_node()
    async with node.served() as client, claimed(node, SERIALS["b"], driver) as disk:
        nvme = Controller(node, await shown(node, disk))
        assert await told(node, disk) == ("True", "SwitchedOff")
        assert not await nvme.is_on()
        pod = Pod(node, client, f"v-{driver}", fs_type="ext4", size_bytes=64 * MIB)
        try:
            await pod.start()
            before: dict[str, bytes] = {}
            for number in range(CUTS):
                # One file over and over, and a new one each time, which needs the filesystem's and the pool's records.
                now = {name: overwrite(pod.target / name) for name in ("same", f"new-{number}")}
                lost = await cut(node, pod, monitor, target=(number + 1) % WITH_TARGET == 0)
                print(f"cut {number}: {lost} bytes were not flushed", flush=True)
                for name, data in (before | now).items():
                    assert on_disk(pod.target / name) == data, (number, name)
                before = now
            await pod.detach()
            await pod.check()
        finally:
            await pod.sweep()
            await client.delete_volume(pod.volume_id)


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_synced_file_is_lost_where_a_rule_leaves_the_cache_on(
    make_node: MakeNode, monitor: Monitor, driver: str
) -> None:
    """What a wrong rule does, and that these disks really forget."""
    node = make_node(PROTECTED)
    async with node.served() as client, claimed(node, SERIALS["b"], driver) as disk:
        nvme = Controller(node, await shown(node, disk))
        await nvme.switch_on()  # an earlier test had it switched off
        await until_told(node, disk, ("True", "Protected"))
        pod = Pod(node, client, f"lost-{driver}", fs_type="ext4", size_bytes=64 * MIB)
        try:
            await pod.start()
            kept = overwrite(pod.target / "same")
            await run("sync", "-f", pod.target)
            await nvme.flush()
            synced = overwrite(pod.target / "same")
            assert await cut(node, pod, monitor) >= BYTES
            assert on_disk(pod.target / "same") == kept != synced
            await pod.detach()
        finally:
            await pod.sweep()
            await client.delete_volume(pod.volume_id)


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_cache_that_comes_on_by_itself_is_switched_off_and_emptied(
    make_node: MakeNode, monitor: Monitor, driver: str
) -> None:
    node = make_node()
    async with node.served() as client, claimed(node, SERIALS["b"], driver) as disk:
        nvme = Controller(node, await shown(node, disk))
        pod = Pod(node, client, f"reset-{driver}", fs_type="ext4", size_bytes=64 * MIB)
        try:
            await pod.start()
            await nvme.switch_on()  # as a reset does
            synced = overwrite(pod.target / "same")
            await patiently_until_off(nvme)
            await until_told(node, disk, ("True", "SwitchedOff"))  # and so emptied
            assert "has come on again" in node.log()
            await cut(node, pod, monitor)
            assert on_disk(pod.target / "same") == synced
            await pod.detach()
        finally:
            await pod.sweep()
            await client.delete_volume(pod.volume_id)


async def patiently_until_off(nvme: Controller, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while await nvme.is_on():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.5)


async def test_a_sata_disk_is_told_too(make_node: MakeNode) -> None:
    node = make_node()
    path = by_path(f"ata-LAB_SATA_SSD_{SERIALS['ssd']}")
    (file,) = Path("/sys/class/block", path.name, "device/scsi_disk").glob("*/cache_type")  # noqa: ASYNC240
    file.write_text("write back")
    # The kernel alone is told so: it is no less volatile than before.
    file.write_text("temporary write through")
    async with node.served(), claimed(node, SERIALS["ssd"], "kernel") as disk:
        assert await told(node, disk) == ("True", "SwitchedOff")
        assert file.read_text().strip() == "write through"
        assert "Disabled" in await run("smartctl", "--get=wcache", path)


async def test_a_disk_whose_cache_stays_on_is_refused_unless_a_rule_says_that_it_is_protected(
    make_node: MakeNode,
) -> None:
    hot = HotDisk(virtual=True)
    hot.plug(SLOTS[1])
    try:
        await _refused_unless_protected(make_node)
    finally:
        hot.close()


async def _refused_unless_protected(make_node: MakeNode) -> None:
    node = make_node()
    async with node.served():
        with pytest.raises(
            Exception, match=r"its volatile write cache is on: its hypervisor(.|\n)*power_loss_protected"
        ):
            await quarry("disks", "claim", SERIAL, "--yes", *state(node))
        again = await shown(node, SERIAL)
        assert (again["phase"], again["claimed"], again["eligible"]) == ("Available", None, True), again
    node.close()
    node = make_node(PROTECTED)
    async with node.served(), claimed(node, SERIAL, "kernel") as disk:
        assert await told(node, disk) == ("True", "Protected")
