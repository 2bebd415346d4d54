"""A pool that runs full: seen coming, nothing new is promised, and no volume loses what it has."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
import pytest

from agent.csi.client import CallFailed
from agent.csi.pb import csi_pb2 as csi
from agent.nvmf import initiator
from agent.nvmf.failure import CommandError
from agent.nvmf.status import Status
from tests.crash.machine import NODE, Machine, Patient

MIB = 1 << 20
SIZE = 64 * MIB
CONFIG = "pool: {refresh_interval_s: 0.1, warning_percent: 50}"


def pattern(name: str, cluster: int) -> bytes:
    return f"{name} cluster {cluster:4}.".encode().ljust(64, b".") * (MIB // 64)


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < deadline, "the condition was never met"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def small_pool(machine: Machine) -> AsyncIterator[Patient]:
    """An agent over a pool of about 80 MiB."""
    machine.disk.touch()
    with machine.disk.open("r+b") as file:
        file.truncate(96 * MIB)
    machine.start_agent(CONFIG)
    client = Patient(machine.endpoint)
    try:
        await client.wait_ready()
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def host_of(client: Patient, volume: str) -> AsyncIterator[initiator.Controller]:
    context = await client.call("publish", volume, NODE)
    host = await initiator.connect(context["address"], int(context["port"]), context["nqn"], context["hostNqn"])
    try:
        yield host
    finally:
        await host.close()


async def fill(host: initiator.Controller, name: str) -> int:
    """Write cluster after cluster until one fails; returns how many were written."""
    for cluster in range(SIZE // MIB):
        try:
            await host.write(1, cluster * MIB, pattern(name, cluster))
        except CommandError as error:
            assert error.status == Status.INTERNAL_ERROR  # the code a kernel makes EIO of, after a few attempts
            return cluster
    raise AssertionError("the pool never ran full")


async def check(host: initiator.Controller, name: str, clusters: int) -> None:
    for cluster in range(clusters):
        assert await host.read(1, cluster * MIB, MIB) == pattern(name, cluster)


async def condition(client: Patient, volume: str) -> tuple[bool, str]:
    how = (await client.call("get_volume", volume)).status.volume_condition
    return how.abnormal, how.message


async def test_the_neighbour_of_one_that_fills_the_pool(machine: Machine) -> None:
    async with small_pool(machine) as client:
        greedy = await client.call("create_volume", "greedy", SIZE, {"tier": "ssd"})
        modest = await client.call("create_volume", "modest", SIZE, {"tier": "ssd"})
        spare = await client.call("create_volume", "spare", SIZE, {"tier": "ssd"})
        async with host_of(client, greedy) as one, host_of(client, modest) as other, host_of(client, spare) as third:
            for cluster in range(8):
                await other.write(1, cluster * MIB, pattern("modest", cluster))
                await third.write(1, cluster * MIB, pattern("spare", cluster))
            written = await fill(one, "greedy")
            assert written < SIZE // MIB

            await check(other, "modest", 8)
            await check(one, "greedy", written)
            for cluster in range(8):  # what is allocated can be written again, in part and in whole
                await other.write(1, cluster * MIB + 4096, b"n" * 4096)
                assert await other.read(1, cluster * MIB + 4096, 4096) == b"n" * 4096
                await other.write(1, cluster * MIB, pattern("modest", cluster))
            with pytest.raises(CommandError):
                await other.write(1, 40 * MIB, b"x" * 4096)
            assert await other.read(1, 40 * MIB, 4096) == bytes(4096)
            await check(other, "modest", 8)
            await check(one, "greedy", written)

            async def full() -> bool:
                return "is full" in (await condition(client, modest))[1]

            await until(full)
            await third.close()
            await client.call("unpublish", spare, NODE)
            await client.call("delete_volume", spare)
            await other.write(1, 40 * MIB, pattern("modest", 40))
            await one.write(1, written * MIB, pattern("greedy", written))
            await check(one, "greedy", written + 1)
            await check(other, "modest", 8)
            assert await other.read(1, 40 * MIB, MIB) == pattern("modest", 40)


async def test_nothing_is_promised_while_the_pool_is_short_of_space(machine: Machine) -> None:
    async with small_pool(machine) as client:
        room = await client.call("get_capacity", {"tier": "ssd"})
        assert room.available_capacity > 4 * SIZE
        volume = await client.call("create_volume", "v", SIZE, {"tier": "ssd"})
        thick = await client.call("create_volume", "thick", 16 * MIB, {"tier": "ssd", "provisioning": "thick"})
        assert await condition(client, volume) == (False, "the volume is available")
        async with host_of(client, volume) as host:
            for cluster in range(30):
                await host.write(1, cluster * MIB, pattern("v", cluster))

            async def low() -> bool:
                return (await condition(client, volume))[0]

            await until(low)
            message = (await condition(client, volume))[1]
            assert "nearly full (" in message and "delete snapshots or volumes" in message
            await client.call("create_volume", "still fine", SIZE, {"tier": "ssd"})

            written = await fill(host, "v")

            async def full() -> bool:
                return "is full" in (await condition(client, volume))[1]

            await until(full)
            assert (await client.call("get_capacity", {"tier": "ssd"})).available_capacity == 0
            for call in (
                client.client.create_volume("too much", SIZE, {"tier": "ssd"}),
                client.client.create_volume("too much", MIB, {"tier": "ssd", "provisioning": "thick"}),
                client.client.expand(volume, 2 * SIZE),
                client.client.expand(thick, 17 * MIB),
            ):
                with pytest.raises(CallFailed, match=r"is full.*; delete snapshots or volumes") as failure:
                    await call
                assert failure.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            await client.call("create_volume", "v", SIZE, {"tier": "ssd"})
            assert (await client.call("expand", volume, SIZE)).capacity_bytes == SIZE
            listed = {each.volume.volume_id: each.status for each in (await client.call("list_volumes")).entries}
            assert listed[volume].volume_condition.abnormal
            assert list(listed[volume].published_node_ids) == [NODE]
            assert not listed[thick].volume_condition.abnormal

            await client.call("delete_volume", thick)

            async def some() -> bool:
                return "nearly full" in (await condition(client, volume))[1]

            await until(some)
            await client.call("create_volume", "too much", SIZE, {"tier": "ssd"})
            assert written > 30


async def test_the_reserve_is_left_to_what_exists(machine: Machine) -> None:
    async with small_pool(machine) as client:
        parameters = {"tier": "ssd", "provisioning": "thick"}
        room = (await client.call("get_capacity", parameters)).maximum_volume_size.value
        with pytest.raises(CallFailed) as failure:
            await client.client.create_volume("too large", room + MIB, parameters)
        assert failure.value.code is grpc.StatusCode.OUT_OF_RANGE
        thin = await client.call("create_volume", "thin", SIZE, {"tier": "ssd"})
        largest = (await client.call("get_capacity", parameters)).maximum_volume_size.value
        await client.call("create_volume", "largest", largest, parameters)
        assert (await client.call("get_capacity", parameters)).maximum_volume_size.value == 0
        async with host_of(client, thin) as host:
            written = await fill(host, "thin")
            assert written >= 4, "5 % of the pool were to be left"
            await check(host, "thin", written)


async def test_get_volume(machine: Machine) -> None:
    async with small_pool(machine) as client:
        volume = await client.call("create_volume", "v", SIZE, {"tier": "ssd"})
        found = await client.call("get_volume", volume)
        listed = (await client.call("list_volumes")).entries[0]
        assert (found.volume, found.status.volume_condition) == (listed.volume, listed.status.volume_condition)
        assert found.volume.capacity_bytes == SIZE
        assert found.status.HasField("volume_condition")
        for unknown in ("nothing", "vol-" + "0" * 32):
            with pytest.raises(CallFailed) as failure:
                await client.client.get_volume(unknown)
            assert failure.value.code is grpc.StatusCode.NOT_FOUND
        with pytest.raises(CallFailed) as failure:
            await client.client.call("Controller/ControllerGetVolume", csi.ControllerGetVolumeRequest())
        assert failure.value.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_snapshots_in_a_full_pool(machine: Machine) -> None:
    """What a snapshot has taken over must be written elsewhere: a thick volume fails too, and loses nothing."""
    async with small_pool(machine) as client:
        parameters = {"tier": "ssd", "provisioning": "thick"}
        thick = await client.call("create_volume", "thick", 16 * MIB, parameters)
        greedy = await client.call("create_volume", "greedy", SIZE, {"tier": "ssd"})
        async with host_of(client, thick) as one, host_of(client, greedy) as other:
            for cluster in range(8):
                await one.write(1, cluster * MIB, pattern("before", cluster))
            assert not (await condition(client, thick))[0]
            snapshot = (await client.call("create_snapshot", "s", thick)).snapshot_id
            await fill(other, "greedy")

            async def full() -> bool:
                return "is full" in (await condition(client, thick))[1]

            await until(full)
            with pytest.raises(CallFailed, match=r"is full.*; delete snapshots or volumes") as failure:
                await client.client.create_snapshot("too much", thick)
            assert failure.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert [each.snapshot.snapshot_id for each in (await client.call("list_snapshots")).entries] == [snapshot]
            assert (await client.call("create_snapshot", "s", thick)).snapshot_id == snapshot
            with pytest.raises(CommandError):
                await one.write(1, 0, pattern("after", 0))
            await check(one, "before", 8)
            with pytest.raises(CommandError):
                await one.write(1, 0, b"x" * 4096)
            await check(one, "before", 8)

            await client.call("delete_snapshot", snapshot)

            async def own() -> bool:
                return not (await condition(client, thick))[0]

            await until(own)
            for cluster in range(16):
                await one.write(1, cluster * MIB, pattern("after", cluster))
            await check(one, "after", 16)
