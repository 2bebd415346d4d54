"""What a connected host sees of changes: size, namespaces, ANA states, discovery."""

from __future__ import annotations

import asyncio

import pytest

from agent.embedded.bdev import BdevRegistry
from agent.nvmf.command import EventInfo, Feature, LogPage
from agent.nvmf.failure import CommandError
from agent.nvmf.identify import AnaState, OptionalEvents
from agent.nvmf.initiator import DISCOVERY_NQN, Controller
from agent.nvmf.status import Status

from .memory import MIB, MemoryBdev, exported, expose
from .waiting import until


def _events(controller: Controller) -> list[int]:
    seen: list[int] = []
    controller.on_event(lambda info: seen.append(int(info)))
    return seen


async def test_a_resize_is_announced_and_visible() -> None:
    async with exported() as target:
        registry = BdevRegistry()
        registry.add(target.bdev)
        controller = await target.connect()
        seen = _events(controller)
        target.bdev.resize(2048)
        registry.resize(target.bdev, 2048)
        await until(lambda: seen == [EventInfo.NAMESPACE_ATTRIBUTE])
        assert await controller.changed_namespaces() == [1]
        assert await controller.changed_namespaces() == []
        (namespace,) = await controller.namespaces()
        assert namespace.size_bytes == 2048 * 4096
        await controller.write(1, 2047 * 4096, b"end!" * 1024)
        await controller.close()


async def test_an_event_is_told_once_until_its_page_is_read() -> None:
    async with exported() as target:
        controller = await target.connect()
        seen = _events(controller)
        for nsid in (2, 3, 4):
            expose(target.subsystem, MemoryBdev(f"m{nsid}"), nsid)
        await until(lambda: seen)
        await controller.admin.keep_alive()
        assert seen == [EventInfo.NAMESPACE_ATTRIBUTE]
        assert await controller.changed_namespaces() == [2, 3, 4]
        target.subsystem.remove_namespace(3)
        await until(lambda: len(seen) == 2)
        await controller.close()


async def test_events_that_the_host_did_not_ask_for_are_not_sent() -> None:
    async with exported() as target:
        controller = await target.connect()
        seen = _events(controller)
        await controller.admin.set_feature(Feature.ASYNC_EVENT_CONFIGURATION, OptionalEvents.ANA_CHANGE)
        expose(target.subsystem, MemoryBdev("m2"), 2)
        target.listener_state(AnaState.NON_OPTIMIZED)
        await until(lambda: seen)
        assert seen == [EventInfo.ANA_CHANGE]
        await controller.close()


async def test_inaccessible_holds_new_io_back_while_old_io_ends() -> None:
    async with exported() as target:
        controller = await target.connect()
        seen = _events(controller)
        await controller.namespaces()
        target.bdev.gate.clear()
        in_flight = asyncio.create_task(controller.write(1, 0, b"old!" * 1024))
        await until(lambda: target.subsystem.namespaces[1].outstanding == 1)
        target.listener_state(AnaState.INACCESSIBLE)
        with pytest.raises(CommandError) as held:
            await controller.write(1, 0, b"new!" * 1024)
        assert held.value.status == Status.ANA_INACCESSIBLE
        assert held.value.path_related
        assert not held.value.dnr
        target.bdev.gate.set()
        await in_flight
        assert target.bdev.content[:4096] == b"old!" * 1024
        await until(lambda: seen == [EventInfo.ANA_CHANGE])
        assert await controller.ana_states() == {1: AnaState.INACCESSIBLE}
        assert (await controller.namespaces())[0].size_bytes == 4 * MIB  # the namespace stays known
        target.listener_state(AnaState.OPTIMIZED)
        await until(lambda: len(seen) == 2)
        assert await controller.ana_states() == {1: AnaState.OPTIMIZED}
        await controller.write(1, 0, b"new!" * 1024)
        await controller.close()


async def test_removing_a_namespace_waits_for_its_io() -> None:
    async with exported() as target:
        controller = await target.connect()
        await controller.namespaces()
        target.bdev.gate.clear()
        in_flight = asyncio.create_task(controller.write(1, 0, b"old!" * 1024))
        namespace = target.subsystem.namespaces[1]
        await until(lambda: namespace.outstanding == 1)
        drained = asyncio.create_task(target.subsystem.remove_namespace(1).drained())
        with pytest.raises(CommandError):
            await controller.read(1, 0, 4096)
        assert not drained.done()
        target.bdev.gate.set()
        await asyncio.gather(drained, in_flight)
        await controller.close()


async def test_ana_page_in_parts_equals_the_whole() -> None:
    async with exported() as target:
        for nsid in range(2, 33):
            expose(target.subsystem, MemoryBdev(f"m{nsid}", MIB), nsid)
        controller = await target.connect()
        whole = await controller.admin.log_page(LogPage.ANA, 16 + 32 * 36)
        parts = [await controller.admin.log_page(LogPage.ANA, 4, offset=at) for at in range(0, len(whole), 4)]
        assert b"".join(parts) == whole
        with pytest.raises(CommandError):
            await controller.admin.log_page(LogPage.ANA, 4, offset=len(whole))
        with pytest.raises(CommandError):
            await controller.admin.log_page(LogPage.ANA, 4, offset=2)
        await controller.close()


async def test_discovery_changes_are_announced() -> None:
    async with exported() as target:
        controller = await target.connect(nqn=DISCOVERY_NQN)
        seen = _events(controller)
        target.subsystem.set_allow_any_host(True)
        await until(lambda: seen == [EventInfo.DISCOVERY_LOG])
        await controller.close()


async def test_aborting_an_event_request() -> None:
    async with exported() as target:
        controller = await target.connect()
        pending = asyncio.create_task(controller.admin.next_event())
        side = target.subsystem.controllers[1].events  # type: ignore[attr-defined]
        await until(lambda: len(side._requests) == 2)
        cid = max(side._requests)
        assert await controller.admin.abort(0, cid)
        with pytest.raises(CommandError) as aborted:
            await pending
        assert aborted.value.status == Status.ABORTED_BY_REQUEST
        assert not await controller.admin.abort(1, 55)
        await controller.close()


async def test_a_fifth_event_request_is_one_too_many() -> None:
    async with exported() as target:
        controller = await target.connect()
        waiting = [asyncio.create_task(controller.admin.next_event()) for _ in range(4)]
        done, others = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=5)
        (refused,) = done
        assert isinstance(refused.exception(), CommandError)
        assert len(others) == 3
        for task in others:
            task.cancel()
        await controller.close()
