"""What a deleted volume or snapshot held is shown by no later one, whoever is killed while the target zeroes it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from agent.csi.client import CallFailed, CsiClient
from agent.model import POOL_PREFIX
from agent.nvmf import initiator
from agent.pools.names import is_held_name
from agent.spdk import app, bdev, lvol
from agent.spdk.client import Client

from .machine import NODE, PATIENCE_S, Machine, Patient, holdings

MIB = 1 << 20
SECRET = (b"belongs to tenant A " * 205)[:4096]
AT = MIB // 2
"""Where in each cluster A has something; B writes at the beginning of each."""
CLUSTERS = {"real": 3000, "embedded": 300}
DISK = {"real": "4GiB", "embedded": "512MiB"}
PARAMETERS = {"tier": "ssd"}
BEGUN = 0.0
"""Seconds into a deletion: as soon as the target no longer shows the lvol."""

Call = Callable[[], Awaitable[object]]


class Scene:
    """Tenant A's volume is written, deleted and cut off; tenant B gets one of the same size."""

    def __init__(self, machine: Machine, csi: Patient) -> None:
        self.machine = machine
        self.csi = csi
        self.clusters = CLUSTERS[machine.kind]

    @asynccontextmanager
    async def opened(self, volume: str) -> AsyncIterator[initiator.Controller]:
        to = await self.csi.call("publish", volume, NODE)
        host = await initiator.connect(to["address"], int(to["port"]), to["nqn"], to["hostNqn"])
        try:
            yield host
        finally:
            await host.close()
            await self.csi.call("unpublish", volume, NODE)

    async def fill(self, volume: str) -> None:
        async with self.opened(volume) as host:
            await self._each(lambda at: host.write(1, at * MIB + AT, SECRET))
            await host.flush(1)

    async def cut_off(self, delete: Call, lvol_name: str, after_s: float, *, target: bool, agent: bool) -> None:
        """Kill one or both, so long after the target began, and start them again."""
        async with Client(self.machine.target.socket_path) as rpc:
            await rpc.wait_connected(PATIENCE_S)
            (pool,) = [each.name for each in await lvol.list_lvstores(rpc) if each.name.startswith(POOL_PREFIX)]
            deleting = asyncio.create_task(_tried(delete))
            deadline = time.monotonic() + PATIENCE_S
            while await bdev.get(rpc, f"{pool}/{lvol_name}") is not None:
                assert time.monotonic() < deadline, "nothing was deleted"
        await asyncio.sleep(after_s)  # the moment that is tried
        if target:
            self.machine.target.kill()
        if agent:
            self.machine.kill_agent()
        await deleting
        if target:
            self.machine.target.start()
        if agent:
            self.machine.start_agent(disk_size=DISK[self.machine.kind])

    async def shown(self) -> int:
        """How many clusters of B's thin volume show A's data, after 4 KiB were written into each."""
        volume = await self.csi.call("create_volume", "b", self.clusters * MIB, PARAMETERS)
        shown = 0
        async with self.opened(volume) as host:
            await self._each(lambda at: host.write(1, at * MIB, bytes(4095) + b"B"))
            for at in range(self.clusters):
                shown += await host.read(1, at * MIB + AT, len(SECRET)) == SECRET
        await self.csi.call("delete_volume", volume)
        return shown

    async def overwrite(self, volume: str) -> None:
        async with self.opened(volume) as host:
            await self._each(lambda at: host.write(1, at * MIB + AT, bytes(4096)))

    async def _each(self, write: Callable[[int], Awaitable[None]]) -> None:
        """Once for each cluster."""
        for at in range(0, self.clusters, 10):
            await asyncio.gather(*(write(at + i) for i in range(10)))

    async def settled(self, free_clusters: int) -> None:
        """Return when the pool has so much free, nothing of it held, and the disk's record says that it is zeroed."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            async with Client(self.machine.target.socket_path) as rpc:
                await rpc.wait_connected(PATIENCE_S)
                await app.wait_init(rpc)
                pools = await lvol.list_lvstores(rpc)
            held = [each for each in (await holdings(self.machine.target.socket_path)).lvols if is_held_name(each)]
            if pools and pools[0].free_clusters == free_clusters and not held and self.free_space() == "Zeroed":
                return
            assert time.monotonic() < deadline, f"{pools}, {held}, {self.free_space()}"
            await asyncio.sleep(0.05)

    def free_space(self) -> str:
        """What the record of the disk says."""
        with contextlib.closing(sqlite3.connect(self.machine.folder / "agent" / "quarry.db")) as database:
            rows = database.execute("SELECT document FROM resources WHERE kind = 'Disk'").fetchall()
        (said,) = [
            each["status"]["pool"]["free_space"]
            for (text,) in rows
            if (each := json.loads(text))["spec"].get("claimed")
        ]
        return str(said)


async def _tried(call: Call) -> None:
    with contextlib.suppress(CallFailed):
        await call()


@asynccontextmanager
async def scene(machine: Machine) -> AsyncIterator[Scene]:
    machine.start_agent(disk_size=DISK[machine.kind])
    csi = Patient(machine.endpoint)
    try:
        await csi.wait_ready()
        yield Scene(machine, csi)
    finally:
        await csi.close()


async def free_clusters(machine: Machine) -> int:
    async with Client(machine.target.socket_path) as rpc:
        await rpc.wait_connected(PATIENCE_S)
        return (await lvol.list_lvstores(rpc))[0].free_clusters


@pytest.mark.timeout(300)
@pytest.mark.parametrize("killed", ["target", "agent", "both"])
@pytest.mark.parametrize("after_s", [BEGUN, 0.05, 0.3, 1.0])
async def test_a_deletion_cut_off_shows_nothing_to_the_next_volume(
    machine: Machine, after_s: float, killed: str
) -> None:
    if machine.kind == "embedded" and after_s > BEGUN:
        pytest.skip("the embedded target has zeroed so little by then")
    async with scene(machine) as on:
        free = await free_clusters(machine)
        volume = await on.csi.call("create_volume", "a", on.clusters * MIB, PARAMETERS)
        await on.fill(volume)
        delete = lambda: CsiClientOnce(machine).delete(volume)  # noqa: E731
        await on.cut_off(delete, volume, after_s, target=killed != "agent", agent=killed != "target")
        await on.csi.call("delete_volume", volume)
        await on.settled(free)
        assert await on.shown() == 0
        await on.settled(free)


@pytest.mark.timeout(300)
async def test_a_snapshot_whose_deletion_is_cut_off_shows_nothing_to_the_next_volume(machine: Machine) -> None:
    """Its volume has written everything anew: all that the snapshot held comes free."""
    async with scene(machine) as on:
        on.clusters //= 3
        volume = await on.csi.call("create_volume", "a", on.clusters * MIB, PARAMETERS)
        await on.fill(volume)
        taken = await on.csi.call("create_snapshot", "s", volume)
        free = await free_clusters(machine)
        await on.overwrite(volume)
        delete = lambda: CsiClientOnce(machine).delete_snapshot(taken.snapshot_id)  # noqa: E731
        await on.cut_off(delete, taken.snapshot_id, BEGUN, target=True, agent=False)
        await on.csi.call("delete_snapshot", taken.snapshot_id)
        await on.settled(free)
        assert await on.shown() == 0


@pytest.mark.timeout(300)
async def test_a_pool_that_is_killed_while_it_is_zeroed_is_zeroed_again(machine: Machine) -> None:
    async with scene(machine) as on:
        free = await free_clusters(machine)
        volume = await on.csi.call("create_volume", "a", on.clusters * MIB, PARAMETERS)
        await on.fill(volume)
        delete = lambda: CsiClientOnce(machine).delete(volume)  # noqa: E731
        await on.cut_off(delete, volume, BEGUN, target=True, agent=True)
        for _ in range(3):
            await _holding(machine)
            machine.target.kill()
            machine.kill_agent()
            machine.target.start()
            machine.start_agent(disk_size=DISK[machine.kind])
        await on.csi.wait_ready()
        await on.csi.call("delete_volume", volume)
        await on.settled(free)
        assert await on.shown() == 0


async def _holding(machine: Machine) -> None:
    """Return when free space of the pool is held."""
    deadline = time.monotonic() + PATIENCE_S
    async with Client(machine.target.socket_path) as rpc:
        await rpc.wait_connected(PATIENCE_S)
        await app.wait_init(rpc)
        while not any(is_held_name(each.name) for each in await lvol.list_lvols(rpc)):
            assert time.monotonic() < deadline, "nothing was held"


class CsiClientOnce:
    """Calls made once, each over its own connection: whoever answers may be killed."""

    def __init__(self, machine: Machine) -> None:
        self._endpoint = machine.endpoint

    async def delete(self, volume: str) -> None:
        async with CsiClient(self._endpoint, timeout_s=PATIENCE_S) as client:
            await client.delete_volume(volume)

    async def delete_snapshot(self, snapshot: str) -> None:
        async with CsiClient(self._endpoint, timeout_s=PATIENCE_S) as client:
            await client.delete_snapshot(snapshot)
