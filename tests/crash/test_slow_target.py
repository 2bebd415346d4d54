"""A target that takes its time, or goes away in the middle: seen through a relay between it and the agent."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent.config.settings import FileDisk, Settings, load_settings
from agent.csi.client import CallFailed, CsiClient
from agent.daemon.standalone import Standalone
from agent.model import POOL_PREFIX, Disk
from agent.spdk import lvol
from agent.spdk.client import Client
from agent.store.local import open_local
from tests.contract import waiting

from .machine import ADDRESS, NODE, Machine, holdings

MIB = 1 << 20


class Relay:
    """Passes JSON-RPC on. `delays`: seconds a call of a method is kept back. `cut_at`: hangs up, once, at a method."""

    def __init__(self, target: Path, path: Path) -> None:
        self.path = path
        self.delays: dict[str, float] = {}
        self.cut_at = ""
        self._target = target
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        server = await asyncio.start_unix_server(self._serve, self.path)
        try:
            yield
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            from_target, to_target = await asyncio.open_unix_connection(self._target)
            back = self._spawn(self._back(from_target, writer))
            await self._forth(reader, to_target)
            back.cancel()
            to_target.close()
        writer.close()

    async def _back(self, from_target: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await from_target.read(65536):
            writer.write(data)
        writer.close()

    async def _forth(self, reader: asyncio.StreamReader, to_target: asyncio.StreamWriter) -> None:
        pending, decoder = "", json.JSONDecoder()
        while data := await reader.read(65536):
            pending = (pending + data.decode()).lstrip()
            while pending:
                try:
                    call, end = decoder.raw_decode(pending)
                except ValueError:
                    break  # not complete yet
                if call["method"] == self.cut_at:
                    self.cut_at = ""
                    return
                self._pass(call, pending[:end].encode(), to_target)
                pending = pending[end:].lstrip()

    def _pass(self, call: dict[str, Any], data: bytes, to_target: asyncio.StreamWriter) -> None:
        delay_s = self.delays.get(call["method"], 0)
        if not delay_s:
            to_target.write(data)
            return

        async def later() -> None:
            await asyncio.sleep(delay_s)  # the slow work that this stands for
            to_target.write(data)

        self._spawn(later())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition was never met"
        await asyncio.sleep(0.01)


def settings(machine: Machine, relay: Relay, size: str = "20GiB", **more: Any) -> Settings:
    return load_settings(
        node_name=NODE,
        state_dir=machine.folder / "agent",
        csi_endpoint=machine.endpoint,
        spdk_socket=relay.path,
        nvmf_address=ADDRESS,
        nvmf_port=machine.port,
        file_disks=(f"{machine.disk}:{size}:ssd",),
        **more,
    )


async def test_a_deletion_takes_as_long_as_it_takes(machine: Machine) -> None:
    """Zeroing what was written outlasts any timeout for ordinary calls; given up, it would pass for done."""
    relay = Relay(machine.target.socket_path, machine.folder / "relay.sock")
    given = settings(machine, relay, rpc={"call_timeout_s": 0.5})
    async with relay.serving(), Standalone(given) as agent, CsiClient(machine.endpoint) as client:
        await agent.wait_ready(30)
        volume = await client.create_volume("v", 16 * MIB, {"tier": "ssd"})
        relay.delays = {"bdev_lvol_delete": 1.5}
        await client.delete_volume(volume)
        assert (await holdings(machine.target.socket_path)).lvols == []
        assert list((await client.list_volumes()).entries) == []


async def test_space_that_is_being_zeroed_is_no_full_pool(machine: Machine) -> None:
    """A pool of which nothing is known gives its space out as it is zeroed: refusals and conditions say so."""
    relay = Relay(machine.target.socket_path, machine.folder / "relay.sock")
    given = settings(machine, relay, "256MiB", pool={"refresh_interval_s": 0.1})
    ssd = {"tier": "ssd"}
    async with relay.serving():
        async with Standalone(given) as agent, CsiClient(machine.endpoint) as client:
            await agent.wait_ready(30)
            await client.create_volume("kept", 16 * MIB, ssd)
        (given.state_dir / "quarry.db").unlink()
        relay.delays = {"bdev_lvol_delete": 5.0}
        async with Standalone(given) as agent, CsiClient(machine.endpoint) as client:
            await agent.wait_ready(30)
            with pytest.raises(CallFailed, match=r"gives its space out as it is zeroed \(0 %: 0 of \d+ MiB") as refused:
                await client.create_volume("v", 16 * MIB, ssd)
            assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await client.capacity(ssd) == 0
            store = await open_local(given.state_dir / "quarry.db")
            (disk,) = [each for each in await store.list(Disk) if each.spec.claimed]
            await store.close()
            found = {each.type: each.status.value for each in disk.status.conditions}
            assert (found["FreeSpaceZeroed"], found["SpaceLow"]) == ("False", "False")
            relay.delays = {}

            async def room() -> bool:
                return await client.capacity(ssd) > 16 * MIB

            await waiting.until(room, bool)
            await client.create_volume("v", 16 * MIB, ssd)


async def test_disks_that_are_not_known_yet_are_waited_for(machine: Machine) -> None:
    """No disk yet is not no disk: the scheduler would go to another node, the resizer would give up."""
    relay = Relay(machine.target.socket_path, machine.folder / "relay.sock")
    async with relay.serving():
        async with Standalone(settings(machine, relay)) as agent, CsiClient(machine.endpoint) as client:
            await agent.wait_ready(30)
            kept = await client.create_volume("kept", 16 * MIB, {"tier": "ssd"})
        relay.delays = {"bdev_wait_for_examine": 1.0}
        async with Standalone(settings(machine, relay)), CsiClient(machine.endpoint) as client:
            grown, made, room = await asyncio.gather(
                client.expand(kept, 32 * MIB),
                client.create_volume("v", 16 * MIB, {"tier": "ssd"}),
                client.capacity({"tier": "ssd"}),
            )
        assert grown.capacity_bytes == 32 * MIB
        assert room > 0
        assert (await holdings(machine.target.socket_path)).lvols == sorted([kept, made])


async def test_a_deletion_cut_off_goes_on_after_the_target_is_ready(machine: Machine) -> None:
    relay = Relay(machine.target.socket_path, machine.folder / "relay.sock")
    async with relay.serving():
        async with Standalone(settings(machine, relay)) as agent, CsiClient(machine.endpoint) as client:
            await agent.wait_ready(30)
            deleted = await client.create_volume("deleted", 16 * MIB, {"tier": "ssd"})
            kept = await client.create_volume("kept", 16 * MIB, {"tier": "ssd"})
            relay.delays = {"bdev_lvol_delete": 3600}
            call = asyncio.create_task(client.delete_volume(deleted))
            await until(lambda: agent.rpc.calls["bdev_lvol_delete"] > 0)
            stopping = time.monotonic()
            call.cancel()
        assert time.monotonic() - stopping < 20, "the agent did not stop"
        relay.delays = {"bdev_lvol_delete": 1.0}
        async with Standalone(settings(machine, relay)) as agent, CsiClient(machine.endpoint) as client:
            await agent.wait_ready(30)
            assert (await holdings(machine.target.socket_path)).lvols == sorted([deleted, kept])
            deadline = time.monotonic() + 20
            while len((await client.list_volumes()).entries) > 1:
                assert time.monotonic() < deadline, "the deletion was not taken up again"
                await asyncio.sleep(0.02)
        assert (await holdings(machine.target.socket_path)).lvols == [kept]


async def test_a_connection_lost_in_the_middle_of_the_rebuild(machine: Machine) -> None:
    """The rebuild starts over at once, however many volumes were still to come."""
    relay = Relay(machine.target.socket_path, machine.folder / "relay.sock")
    given = settings(machine, relay, reconcile={"parallel": 1})
    async with relay.serving(), Standalone(given) as agent, CsiClient(machine.endpoint) as client:
        await agent.wait_ready(30)
        names = [await client.create_volume(f"v{index}", 16 * MIB, {"tier": "ssd"}) for index in range(6)]
        connections = agent.rpc.generation
        relay.cut_at = "nvmf_create_subsystem"
        await asyncio.to_thread(machine.target.restart)
        await until(lambda: agent.rpc.generation >= connections + 2)
        started = time.monotonic()
        await agent.wait_ready(60)
        assert time.monotonic() - started < 5, "volumes were waited for one after the other"
        assert sorted((await holdings(machine.target.socket_path)).exports) == sorted(names)


async def test_a_creation_begun_earlier_may_still_go_to_another_disk(machine: Machine) -> None:
    """The first call ends without an answer; when it is repeated its disk has been filled."""
    relay = Relay(machine.target.socket_path, machine.folder / "relay.sock")
    disks = (f"{machine.disk}:1GiB:ssd", f"{machine.folder}/d1.img:1GiB:ssd")
    given = settings(machine, relay, rpc={"call_timeout_s": 0.5}).model_copy(
        update={"file_disks": tuple(FileDisk.parse(each) for each in disks)}
    )
    thick = {"tier": "ssd", "provisioning": "thick"}
    async with relay.serving(), Standalone(given) as agent, CsiClient(machine.endpoint) as client:
        await agent.wait_ready(30)
        relay.delays = {"bdev_lvol_create": 3600}
        with pytest.raises(CallFailed) as failure:
            await client.create_volume("v", 600 * MIB, thick)
        assert failure.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        (begun,) = await agent.volumes.list()
        async with Client(machine.target.socket_path, call_timeout_s=30) as rpc:
            await rpc.wait_connected(10)
            await lvol.create(rpc, POOL_PREFIX + begun.spec.placement[0].disk, "filler", 600 * MIB, thin=False)
        relay.delays = {}
        volume = await client.create_volume("v", 600 * MIB, thick)
        (made,) = await agent.volumes.list()
        assert made.meta.name == volume
        assert made.spec.placement[0].disk != begun.spec.placement[0].disk
        assert (await holdings(machine.target.socket_path)).lvols == sorted(["filler", volume])
