"""Volumes and snapshots that stand on each other: they go in any order, through restarts, and leave nothing behind."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest

from agent.csi.client import from_snapshot, from_volume
from tests.crash.machine import Machine, Patient, holdings

from .trees import MIB, SSD, client_of, opened, read, wait_lvols, write

SIZE = 8 * MIB
AT = (0, MIB, 2 * MIB)


class Tree:
    """A volume, two snapshots of it, a volume made of the first one, and a clone of that. Knows what each holds."""

    def __init__(self, csi: Patient, name: str) -> None:
        self.csi = csi
        self.name = name
        self.snapshots: dict[str, str] = {}
        self.volumes: dict[str, str] = {}
        self.holds: dict[str, list[str]] = {}

    async def grow(self) -> None:
        await self._volume("v")
        await self._write("v", ["1", "1", ""])
        await self._snapshot("s1", "v")
        await self._write("v", ["2", "", "2"])
        await self._snapshot("s2", "v")
        await self._write("v", ["", "", "3"])
        await self._volume("r", "s1")
        await self._write("r", ["", "r", ""])
        await self._volume("c", "r")
        await self._write("c", ["", "", "c"])

    async def delete(self, label: str) -> None:
        if label in self.snapshots:
            await self.csi.call("delete_snapshot", self.snapshots.pop(label))
        else:
            await self.csi.call("delete_volume", self.volumes.pop(label))
        del self.holds[label]

    async def check(self) -> None:
        """Everything that is left holds what it should; a snapshot shows it in a volume made of it."""
        for label, expected in self.holds.items():
            if label in self.volumes:
                assert await read(self.csi, self.volumes[label], *AT) == expected, label
            else:
                source = from_snapshot(self.snapshots[label])
                probe = await self.csi.call("create_volume", f"{self.name}-probe", 0, SSD, source=source)
                assert await read(self.csi, probe, *AT) == expected, label
                await self.csi.call("delete_volume", probe)

    async def _volume(self, label: str, of: str = "") -> None:
        source = None
        if of:
            source = from_snapshot(self.snapshots[of]) if of in self.snapshots else from_volume(self.volumes[of])
        name, size = f"{self.name}-{label}", 0 if of else SIZE
        self.volumes[label] = await self.csi.call("create_volume", name, size, SSD, source=source)
        self.holds[label] = self.holds[of] if of else [""] * len(AT)

    async def _snapshot(self, label: str, of: str) -> None:
        taken = await self.csi.call("create_snapshot", f"{self.name}-{label}", self.volumes[of])
        self.snapshots[label], self.holds[label] = taken.snapshot_id, self.holds[of]

    async def _write(self, label: str, texts: list[str]) -> None:
        for at, text in zip(AT, texts, strict=True):
            if text:
                await write(self.csi, self.volumes[label], text, at)
        self.holds[label] = [new or old for new, old in zip(texts, self.holds[label], strict=True)]


ORDERS = list(itertools.permutations(("v", "s1", "s2", "r", "c")))
"""120: a tree for each. Every deletion is checked in a fifth of them, the end in all."""


@pytest.mark.timeout(240)
async def test_deleting_in_every_order(machine: Machine) -> None:
    machine.start_agent()
    async with client_of(machine) as csi:
        slots = asyncio.Semaphore(12)

        async def play(number: int, order: tuple[str, ...]) -> None:
            async with slots:
                tree = Tree(csi, f"t{number}")
                await tree.grow()
                for step, label in enumerate(order):
                    await tree.delete(label)
                    if (number + step) % 5 == 0:
                        await tree.check()

        async with asyncio.TaskGroup() as group:
            for number, order in enumerate(ORDERS):
                group.create_task(play(number, order))
        await wait_lvols(machine, [])
        room = await csi.call("capacity", SSD)
    machine.kill_agent()
    machine.start_agent()
    async with client_of(machine) as csi:
        assert await csi.call("capacity", SSD) == room
        assert not (await csi.call("list_volumes")).entries and not (await csi.call("list_snapshots")).entries


@pytest.mark.timeout(240)
async def test_restarts_in_between(machine: Machine) -> None:
    """Target and agent die, in turn, between any two of the deletions."""
    machine.start_agent()
    async with client_of(machine) as csi:
        trees = [Tree(csi, f"t{number}") for number in range(5)]
        await asyncio.gather(*(tree.grow() for tree in trees))
        orders = random.Random(5).sample(ORDERS, len(trees))
        for step in range(5):
            if step % 2:
                machine.kill_agent()
                machine.start_agent()
            else:
                machine.target.restart()
            await csi.wait_ready()
            await asyncio.gather(*(tree.check() for tree in trees))
            await asyncio.gather(*(tree.delete(order[step]) for tree, order in zip(trees, orders, strict=True)))
        await wait_lvols(machine, [])


@pytest.mark.timeout(240)
async def test_the_agent_dies_during_calls(machine: Machine) -> None:
    """Killed at random moments of snapshots, restores and clones: repeated, they end as if nothing had happened."""
    chance = random.Random(7)
    machine.start_agent()
    async with client_of(machine) as csi:
        volume = await csi.call("create_volume", "v", SIZE, SSD)
        await write(csi, volume, "data", 0)
        for number in range(6):
            calls = (
                csi.call("create_snapshot", f"s{number}", volume),
                csi.call("create_volume", f"c{number}", 0, SSD, source=from_volume(volume)),
            )
            tasks = [asyncio.create_task(call) for call in calls]
            await asyncio.sleep(chance.uniform(0.0, 0.06))  # the moment of death
            machine.kill_agent()
            machine.start_agent()
            snapshot, clone = await asyncio.gather(*tasks)
            tasks = [
                asyncio.create_task(
                    csi.call("create_volume", f"r{number}", 0, SSD, source=from_snapshot(snapshot.snapshot_id))
                ),
                asyncio.create_task(csi.call("delete_volume", clone)),
            ]
            await asyncio.sleep(chance.uniform(0.0, 0.06))
            machine.kill_agent()
            machine.start_agent()
            restored, _ = await asyncio.gather(*tasks)
            assert await read(csi, restored, 0) == ["data"]
            await csi.call("delete_snapshot", snapshot.snapshot_id)
            await csi.call("delete_volume", restored)
        assert await read(csi, volume, 0) == ["data"]
        await csi.call("delete_volume", volume)
        await wait_lvols(machine, [])
        assert not (await csi.call("list_snapshots")).entries


async def test_nothing_of_deleted_volumes_is_seen(machine: Machine) -> None:
    """What a volume made of a snapshot wrote, and what the snapshot held, are zeroes for whoever gets the clusters."""
    secret, size = b"secret".ljust(64, b"."), 24 * MIB
    machine.disk.touch()
    with machine.disk.open("r+b") as file:
        file.truncate(96 * MIB)  # so small that the last volume gets the clusters of the others

    async def fill(csi: Patient, volume: str) -> None:
        async with opened(csi, volume) as host:
            for offset in range(0, size, MIB):
                await host.write(1, offset, secret * (MIB // len(secret)))
            await host.flush(1)

    machine.start_agent("pool: {overprovision_ratio: 8}")
    async with client_of(machine) as csi:
        volume = await csi.call("create_volume", "v", size, SSD)
        await fill(csi, volume)
        snapshot = await csi.call("create_snapshot", "s", volume)
        restored = await csi.call("create_volume", "r", 0, SSD, source=from_snapshot(snapshot.snapshot_id))
        await fill(csi, restored)
        machine.target.restart()  # a target may remember for as long as it lives how to clear
        await csi.wait_ready()
        await csi.call("delete_volume", restored)
        await csi.call("delete_volume", volume)
        await csi.call("delete_snapshot", snapshot.snapshot_id)
        assert (await holdings(machine.target.socket_path)).lvols == []
        last = await csi.call("create_volume", "last", 64 * MIB, SSD)
        async with opened(csi, last) as host:
            for offset in range(0, 64 * MIB, MIB):
                await host.write(1, offset + 8192, b"x" * 4096)
                assert secret not in await host.read(1, offset, MIB)
