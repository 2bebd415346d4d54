"""Snapshots of several volumes at one point in time: what they hold, what is refused, and a death in between."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from agent.csi.client import from_snapshot
from agent.daemon.standalone import Standalone
from agent.errors import QuarryError
from agent.nvmf import initiator
from agent.spdk import nvmf
from agent.spdk.client import Client
from agent.volumes.rules.names import volume_nqn
from tests.contract.targets import ADDRESS
from tests.crash.machine import NODE, Machine, Patient
from tests.crash.test_slow_target import Relay, settings

from .trees import MIB, SSD, client_of, code_of, read, wait_lvols, write

SIZE = 8 * MIB


@pytest.fixture
async def csi(machine: Machine) -> AsyncIterator[Patient]:
    machine.start_agent()
    async with client_of(machine) as patient:
        yield patient


async def test_the_life_of_a_group(machine: Machine, csi: Patient) -> None:
    volumes = [await csi.call("create_volume", f"v{number}", SIZE, SSD) for number in range(3)]
    for each in volumes:
        await write(csi, each, f"of {each}", 0)
    group = await csi.call("create_group", "g", volumes)
    assert group.ready_to_use
    assert {each.source_volume_id for each in group.snapshots} == set(volumes)
    assert {each.group_snapshot_id for each in group.snapshots} == {group.group_snapshot_id}
    assert {each.creation_time.ToNanoseconds() for each in group.snapshots} == {group.creation_time.ToNanoseconds()}
    members = [each.snapshot_id for each in group.snapshots]
    assert await csi.call("create_group", "g", volumes[::-1]) == group
    assert await csi.call("get_group", group.group_snapshot_id, members) == group
    listed = (await csi.call("list_snapshots")).entries
    assert sorted(each.snapshot.snapshot_id for each in listed) == sorted(members)

    client = csi.client
    assert await code_of(client.create_group("g", volumes[:2])) is grpc.StatusCode.ALREADY_EXISTS
    assert await code_of(client.create_group("h", [volumes[0], "vol-x"])) is grpc.StatusCode.NOT_FOUND
    assert await code_of(client.create_group("h", [volumes[0]] * 2)) is grpc.StatusCode.INVALID_ARGUMENT
    assert await code_of(client.create_group("h", [])) is grpc.StatusCode.INVALID_ARGUMENT
    assert await code_of(client.get_group(group.group_snapshot_id, members[:2])) is grpc.StatusCode.INVALID_ARGUMENT
    assert await code_of(client.get_group("group-x", members)) is grpc.StatusCode.NOT_FOUND
    assert await code_of(client.delete_group(group.group_snapshot_id, members[1:])) is grpc.StatusCode.INVALID_ARGUMENT
    assert await code_of(client.delete_snapshot(members[0])) is grpc.StatusCode.INVALID_ARGUMENT
    await client.delete_group("group-x", ["y"])

    for snapshot in group.snapshots:
        await write(csi, snapshot.source_volume_id, "later", 0)
        restored = await csi.call(
            "create_volume", f"r-{snapshot.snapshot_id}", 0, SSD, source=from_snapshot(snapshot.snapshot_id)
        )
        assert await read(csi, restored, 0) == [f"of {snapshot.source_volume_id}"]
        await csi.call("delete_volume", restored)
    machine.kill_agent()
    machine.start_agent()
    await csi.wait_ready()
    assert await csi.call("get_group", group.group_snapshot_id, members) == group
    await csi.call("delete_group", group.group_snapshot_id, members)
    await csi.call("delete_group", group.group_snapshot_id, members)
    assert not (await csi.call("list_snapshots")).entries
    await wait_lvols(machine, volumes)
    again = await csi.call("create_group", "g", volumes[:2])
    assert len(again.snapshots) == 2


class Writer:
    """Writes a growing number to one volume after the other: no volume may show more than the one before it."""

    def __init__(self, hosts: list[initiator.Controller]) -> None:
        self.hosts = hosts
        self.number = 0
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            self.number += 1
            for host in self.hosts:
                await self._write(host, str(self.number).encode().ljust(4096, b"."))

    async def _write(self, host: initiator.Controller, data: bytes) -> None:
        """A volume that is held back answers so; the kernel's host tries again as this one does."""
        while True:
            with contextlib.suppress(QuarryError):
                return await host.write(1, 0, data)
            await asyncio.sleep(0.001)  # between two attempts

    async def wait_beyond(self, number: int) -> None:
        deadline = time.monotonic() + 20
        while self.number <= number + 1:
            assert time.monotonic() < deadline, "writes do not go on"
            assert not self._task.done(), self._task.exception()
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def connected(csi: Patient, volumes: list[str]) -> list[initiator.Controller]:
    hosts = []
    for each in volumes:
        context = await csi.call("publish", each, NODE)
        where = (context["address"], int(context["port"]), context["nqn"], context["hostNqn"])
        hosts.append(await initiator.connect(*where))
    return hosts


class Staggered(Relay):
    """Each snapshot call is carried out later than the one before."""

    def _pass(self, call: dict[str, Any], data: bytes, to_target: asyncio.StreamWriter) -> None:
        if call["method"] == "bdev_lvol_snapshot":
            self.delays[call["method"]] = self.delays.get(call["method"], 0.0) + 0.15
        super()._pass(call, data, to_target)


async def test_the_order_of_writes_holds_across_volumes(machine: Machine) -> None:
    """However long it takes from the first of them to the last."""
    relay = Staggered(machine.target.socket_path, machine.folder / "relay.sock")
    async with relay.serving(), Standalone(settings(machine, relay)) as agent, client_of(machine) as csi:
        await agent.wait_ready(30)
        volumes = sorted([await csi.call("create_volume", f"v{number}", SIZE, SSD) for number in range(3)])
        hosts = await connected(csi, volumes)
        writer = Writer(hosts)
        try:
            await writer.wait_beyond(writer.number)
            group = await csi.call("create_group", "g", volumes)
            await writer.wait_beyond(writer.number)
            of = {each.source_volume_id: each.snapshot_id for each in group.snapshots}
            shown = []
            for each in volumes:
                restored = await csi.call("create_volume", f"r{each}", 0, SSD, source=from_snapshot(of[each]))
                shown.append(int((await read(csi, restored, 0))[0]))
            assert shown == sorted(shown, reverse=True), f"a later write is there without an earlier one: {shown}"
            assert shown[0] - shown[-1] <= 1, shown
        finally:
            await writer.stop()
            for host in hosts:
                await host.close()


async def test_hosts_are_not_held_back_for_ever(machine: Machine) -> None:
    """Snapshots that take too long: hosts go on meanwhile, the call is refused and leaves nothing."""
    relay = Relay(machine.target.socket_path, machine.folder / "relay.sock")
    given = settings(machine, relay, snapshot={"freeze_timeout_s": 0.3})
    async with relay.serving(), Standalone(given) as agent, client_of(machine) as csi:
        await agent.wait_ready(30)
        volumes = [await csi.call("create_volume", f"v{number}", SIZE, SSD) for number in range(2)]
        hosts = await connected(csi, volumes)
        writer = Writer(hosts)
        try:
            relay.delays = {"bdev_lvol_snapshot": 2.0}
            call = asyncio.create_task(code_of(csi.client.create_group("g", volumes)))
            assert await until_held_back(machine, volumes[0], 5)
            number = writer.number
            await writer.wait_beyond(number)
            assert not call.done(), "they went on only because it was over"
            assert await call is grpc.StatusCode.UNAVAILABLE
            await wait_lvols(machine, volumes)
            relay.delays = {}
            assert len((await csi.call("create_group", "g", volumes)).snapshots) == 2
        finally:
            await writer.stop()
            for host in hosts:
                await host.close()


async def test_a_death_while_hosts_are_held_back(machine: Machine, csi: Patient) -> None:
    """The agent is killed at moments of a group snapshot: the next one lets the hosts go on, and the group is made."""
    volumes = [await csi.call("create_volume", f"v{number}", SIZE, SSD) for number in range(3)]
    hosts = await connected(csi, volumes)
    writer = Writer(hosts)
    held = 0
    try:
        for number in range(20):
            if held and number >= 3:
                break
            task = asyncio.create_task(csi.call("create_group", f"g{number}", volumes))
            held += await until_held_back(machine, volumes[0], 0.02 + 0.01 * (number % 4))
            machine.kill_agent()
            machine.start_agent()
            group = await task
            await writer.wait_beyond(writer.number)
            assert len(group.snapshots) == 3
            await csi.call("delete_group", group.group_snapshot_id, [each.snapshot_id for each in group.snapshots])
        assert held, "the agent was never killed while hosts were held back"
    finally:
        await writer.stop()
        for host in hosts:
            await host.close()
    await wait_lvols(machine, volumes)
    assert not (await csi.call("list_snapshots")).entries


async def until_held_back(machine: Machine, volume: str, at_most_s: float) -> bool:
    """Return as soon as the volume's listener is inaccessible, or after `at_most_s`; whether it is."""
    deadline = time.monotonic() + at_most_s
    async with Client(machine.target.socket_path, call_timeout_s=30) as rpc:
        await rpc.wait_connected(10)
        while time.monotonic() < deadline:
            for listener in await nvmf.get_listeners(rpc, volume_nqn(volume)):
                if any(each.ana_state is nvmf.AnaState.INACCESSIBLE for each in listener.ana_states):
                    return True
    return False


async def test_hosts_go_on_after_a_death(machine: Machine, csi: Patient) -> None:
    """As it would be found after a kill at the worst moment: recorded, held back, and nobody repeats the call."""
    volume = await csi.call("create_volume", "v", SIZE, SSD)
    (host,) = await connected(csi, [volume])
    task = asyncio.create_task(csi.client.create_group("g", [volume]))
    for _ in range(200):
        if await until_held_back(machine, volume, 0.05):
            break
        await asyncio.gather(task, return_exceptions=True)
        await csi.call("delete_group", task.result().group_snapshot_id, [])
        task = asyncio.create_task(csi.client.create_group("g", [volume]))
    machine.kill_agent()
    await asyncio.gather(task, return_exceptions=True)
    async with Client(machine.target.socket_path, call_timeout_s=30) as rpc:
        await rpc.wait_connected(10)
        # Whether the kill came in time is a matter of luck: make it so.
        await nvmf.set_ana_state(rpc, volume_nqn(volume), ADDRESS, machine.port, nvmf.AnaState.INACCESSIBLE)
    with pytest.raises(QuarryError):
        await host.write(1, 0, bytes(4096))
    machine.start_agent()
    await csi.wait_ready()
    listed = (await csi.call("list_snapshots")).entries
    if listed:  # the call had ended
        await csi.call("delete_group", listed[0].snapshot.group_snapshot_id, [])
    await host.write(1, 0, bytes(4096))
    await host.close()
    await wait_lvols(machine, [volume])
