"""Limits of a volume: set at creation, changed in use, seen in the target and in what a host gets through."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
import pytest

from agent.csi.client import CallFailed, capability
from agent.csi.pb import csi_pb2 as csi
from agent.errors import Unavailable
from agent.nvmf import initiator
from agent.spdk import bdev
from agent.spdk.client import Client
from tests.crash.machine import NODE, Machine, Patient

MIB = 1 << 20
SIZE = 64 * MIB
CHUNK = 64 << 10
TRANSFER = MIB


@asynccontextmanager
async def running(machine: Machine) -> AsyncIterator[Patient]:
    machine.start_agent()
    client = Patient(machine.endpoint)
    try:
        await client.wait_ready()
        yield client
    finally:
        await client.close()


async def create(
    client: Patient, name: str, parameters: dict[str, str] | None = None, mutable: dict[str, str] | None = None
) -> str:
    request = csi.CreateVolumeRequest(
        name=name,
        capacity_range=csi.CapacityRange(required_bytes=SIZE),
        volume_capabilities=[capability(block=True)],
        parameters={"tier": "ssd"} | (parameters or {}),
        mutable_parameters=mutable,
    )
    volume: str = (await client.call("call", "Controller/CreateVolume", request)).volume.volume_id
    return volume


@asynccontextmanager
async def host_of(client: Patient, volume: str) -> AsyncIterator[initiator.Controller]:
    context = await client.call("publish", volume, NODE, block=True)
    host = await initiator.connect(context["address"], int(context["port"]), context["nqn"], context["hostNqn"])
    try:
        yield host
    finally:
        await host.close()


async def limits(machine: Machine, volume: str) -> tuple[int, ...]:
    """What the target enforces: operations, MiB, MiB read, MiB written a second."""
    async with Client(machine.target.socket_path) as rpc:
        await rpc.wait_connected(30)
        (found,) = [each for each in await bdev.list_all(rpc) if any(volume in alias for alias in each.aliases)]
    held = found.assigned_rate_limits
    return held.rw_ios_per_sec, held.rw_mbytes_per_sec, held.r_mbytes_per_sec, held.w_mbytes_per_sec


async def has_limits(machine: Machine, volume: str, expected: tuple[int, ...]) -> bool:
    try:
        return await limits(machine, volume) == expected
    except (ValueError, Unavailable):  # the target is coming back and has no such volume yet
        return False


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < deadline, "the condition was never met"
        await asyncio.sleep(0.02)


async def reading_s(host: initiator.Controller) -> float:
    started = time.monotonic()
    await asyncio.gather(*(host.read(1, offset, CHUNK) for offset in range(0, TRANSFER, CHUNK)))
    return time.monotonic() - started


async def writing_s(host: initiator.Controller) -> float:
    started = time.monotonic()
    await asyncio.gather(*(host.write(1, offset, b"w" * CHUNK) for offset in range(0, TRANSFER, CHUNK)))
    return time.monotonic() - started


async def test_limits_follow_every_change(machine: Machine) -> None:
    async with running(machine) as client:
        of_class, of_claim = {"iops": "1000", "bandwidth": "8Mi"}, {"bandwidth": "16Mi", "writeBandwidth": "4194304"}
        volume = await create(client, "a", of_class, of_claim)
        await client.call("modify", volume, {"iops": "3000"})  # nobody has it open
        await client.call("modify", volume, {"iops": "2000"})
        async with host_of(client, volume):
            assert await limits(machine, volume) == (2000, 16, 0, 4), "what mutable_parameters say goes first"
            for _ in range(2):
                await client.call("modify", volume, {"readBandwidth": "1Gi", "writeBandwidth": "0"})
            assert await limits(machine, volume) == (2000, 16, 1024, 0)
        assert await create(client, "a", of_class, of_claim) == volume, "a repeated creation changes nothing"
        assert await create(client, "a", of_class) == volume
        assert await limits(machine, volume) == (2000, 16, 1024, 0)
        await client.call("unpublish", volume)
        await client.call("modify", volume, {"iops": "5000", "bandwidth": "0"})
        async with host_of(client, volume):
            assert await limits(machine, volume) == (5000, 0, 1024, 0)
        await client.call("unpublish", volume)
        await client.call("modify", volume, {"iops": "0", "readBandwidth": "0"})
        assert await limits(machine, volume) == (0, 0, 0, 0)
        await client.call("delete_volume", volume)


async def test_limits_outlive_target_and_agent(machine: Machine) -> None:
    async with running(machine) as client:
        open_one, shut_one = await create(client, "open", {"iops": "1000"}), await create(client, "shut", {})
        await client.call("publish", open_one, NODE, block=True)
        await client.call("modify", open_one, {"writeBandwidth": "10Mi"})
        await client.call("modify", shut_one, {"bandwidth": "20Mi"})
        for _ in range(2):
            machine.target.restart()

            await until(lambda: has_limits(machine, open_one, (1000, 0, 0, 10)))
        machine.kill_agent()
    machine.target.restart()
    async with running(machine) as client:
        assert await limits(machine, open_one) == (1000, 0, 0, 10)
        await client.call("modify", open_one, {"iops": "4000"})
        assert await limits(machine, open_one) == (4000, 0, 0, 10)
        await client.call("publish", shut_one, NODE, block=True)
        assert await limits(machine, shut_one) == (0, 20, 0, 0)


async def test_what_a_host_gets_through(machine: Machine) -> None:
    async with running(machine) as client:
        volume = await create(client, "a", {"writeBandwidth": "2Mi"})
        async with host_of(client, volume) as host:
            slow, read = await writing_s(host), await reading_s(host)
            assert slow > 4 * read, f"writing 1 MiB at 2 MiB/s took {slow:.3f} s, reading {read:.3f} s"
            await client.call("modify", volume, {"writeBandwidth": "0", "readBandwidth": "2Mi"})
            fast, read = await writing_s(host), await reading_s(host)
            assert slow > 4 * fast, f"with the limit {slow:.3f} s, without {fast:.3f} s"
            assert read > 4 * fast, f"reading 1 MiB at 2 MiB/s took {read:.3f} s, writing {fast:.3f} s"
            waiting = asyncio.create_task(reading_s(host))
            await client.call("modify", volume, {"readBandwidth": "100Mi"})
            assert await waiting + await reading_s(host) < read, "those that wait go on at once"


async def test_what_cannot_be_modified(machine: Machine) -> None:
    async with running(machine) as client:
        volume = await create(client, "a", {"iops": "1000"})
        async with host_of(client, volume):
            for mutable in (
                {"tier": "hdd"},
                {"iops": "1500"},
                {"iops": "2000", "bandwidth": "fast"},
                {"readIops": "1"},
            ):
                with pytest.raises(CallFailed) as refused:
                    await client.call("modify", volume, mutable)
                assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
            assert await limits(machine, volume) == (1000, 0, 0, 0)
        with pytest.raises(CallFailed) as unknown:
            await client.call("modify", "vol-" + "0" * 32, {"iops": "1000"})
        assert unknown.value.code is grpc.StatusCode.NOT_FOUND
