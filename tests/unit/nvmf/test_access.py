"""Who may connect, and who is cut: hosts, listeners, subsystems, keep alive."""

from __future__ import annotations

import asyncio

import pytest

from agent.embedded.nvmf.settings import TransportSettings
from agent.embedded.nvmf.subsystem import drained
from agent.nvmf import initiator
from agent.nvmf.failure import CommandError, ConnectRefused
from agent.nvmf.initiator import Options
from agent.nvmf.status import Status

from .memory import HOST, NQN, OTHER, MemoryBdev, exported, expose
from .waiting import until


async def _refused(target: object, **arguments: str) -> int:
    with pytest.raises(ConnectRefused) as refused:
        await target.connect(**arguments)  # type: ignore[attr-defined]
    return refused.value.status


async def test_a_host_that_is_not_allowed_is_refused() -> None:
    async with exported() as target:
        assert await _refused(target, host=OTHER) == Status.CONNECT_INVALID_HOST
        assert await _refused(target, host="") == Status.CONNECT_INVALID_HOST
        assert not target.subsystem.controllers
        target.subsystem.set_allow_any_host(True)
        await (await target.connect(host=OTHER)).close()


async def test_an_unknown_subsystem_is_refused() -> None:
    async with exported() as target:
        assert await _refused(target, nqn=NQN + "x") == Status.CONNECT_INVALID_PARAMETERS


async def test_another_listener_of_the_port_does_not_open_this_subsystem() -> None:
    async with exported() as target:
        target.subsystem.remove_listener(target.address)
        assert await _refused(target) == Status.CONNECT_INVALID_HOST


async def test_removing_a_host_cuts_it_at_once_and_only_it() -> None:
    async with exported() as target:
        target.subsystem.add_host(OTHER)
        cut, kept = await target.connect(), await target.connect(host=OTHER)
        await cut.namespaces()
        lost: list[Exception] = []
        cut.on_disconnect(lost.append)
        target.bdev.gate.clear()
        in_flight = asyncio.create_task(cut.write(1, 0, b"x" * 4096))
        await until(lambda: target.subsystem.namespaces[1].outstanding == 1)
        fence = asyncio.create_task(drained(target.subsystem.remove_host(HOST)))
        assert [each.hostnqn for each in target.subsystem.controllers.values()] == [OTHER]
        await until(lambda: lost)
        with pytest.raises(Exception, match="connection"):
            await in_flight
        assert not fence.done()  # a write has reached the bdev: the fence stands when it has ended
        target.bdev.gate.set()
        await fence
        target.bdev.content[:4096] = bytes(4096)
        assert await _refused(target) == Status.CONNECT_INVALID_HOST
        assert target.bdev.content[:4096] == bytes(4096)
        await kept.write(1, 0, b"y" * 4096)
        await kept.close()
        await cut.close()


async def test_removing_the_listener_cuts_its_hosts() -> None:
    async with exported() as target:
        controller = await target.connect()
        target.subsystem.remove_listener(target.address)
        await until(lambda: not controller.connected)
        await controller.close()


async def test_deleting_a_subsystem_cuts_its_hosts_and_frees_its_bdev() -> None:
    async with exported() as target:
        controller = await target.connect()
        await target.target.delete(NQN)
        await until(lambda: not controller.connected)
        assert target.bdev.claimed_by is None
        with pytest.raises(Exception, match="cannot connect"):
            await target.connect()  # nobody else uses the port
        await controller.close()


async def test_a_bdev_that_is_removed_takes_its_namespace_along() -> None:
    async with exported() as target:
        controller = await target.connect()
        await controller.namespaces()
        other = MemoryBdev("other")
        expose(target.subsystem, other, 2)
        target.bdev.removed = True
        target.bdev.notify(_removed())
        assert [each.nsid for each in await controller.namespaces()] == [2]
        with pytest.raises(CommandError) as gone:
            await controller.read(1, 0, 4096)
        assert gone.value.status == Status.INVALID_NAMESPACE
        assert await controller.changed_namespaces() == [2, 1]
        await controller.close()


def _removed() -> object:
    from agent.embedded.bdev import BdevEvent

    return BdevEvent.REMOVE


async def test_io_queues_belong_to_the_host_that_made_the_controller() -> None:
    async with exported() as target:
        target.subsystem.add_host(OTHER)
        controller = await target.connect()
        data = initiator.ConnectData(NQN, OTHER, initiator.host_identifier(OTHER), 2, 16)
        with pytest.raises(ConnectRefused) as foreign:
            await controller.admin.connect_io(data)
        assert foreign.value.status == Status.CONNECT_INVALID_PARAMETERS
        own = initiator.ConnectData(NQN, HOST, initiator.host_identifier(HOST), 1, 16)
        with pytest.raises(ConnectRefused) as duplicate:
            await controller.admin.connect_io(own)
        assert duplicate.value.status == Status.INVALID_QUEUE_IDENTIFIER
        await controller.close()


async def test_a_host_without_keep_alive_is_dropped() -> None:
    async with exported(TransportSettings(kas=1, min_kato=800)) as target:
        kept = await target.connect(Options(keep_alive_s=0.8))
        silent = await target.connect(Options(keep_alive_s=0.8))
        for task in silent._tasks:
            task.cancel()  # this host is frozen
        begun = asyncio.get_running_loop().time()
        await until(lambda: not silent.connected)
        assert 0.3 < asyncio.get_running_loop().time() - begun < 4
        assert kept.connected
        assert [each.cntlid for each in target.subsystem.controllers.values()] == [kept.cntlid]
        await kept.close()
        await silent.close()


async def test_a_lost_admin_connection_ends_the_association() -> None:
    async with exported() as target:
        controller = await target.connect()
        controller.admin.queue.on_end = None
        controller.admin.queue.close()
        await until(lambda: not target.subsystem.controllers)
        with pytest.raises(Exception, match="connection"):
            await controller.read(1, 0, 4096)
        await controller.close()
