"""The initiator against the embedded target's controllers, over real sockets."""

from __future__ import annotations

import asyncio
import os
import uuid

import pytest

from agent.embedded.nvmf.settings import TransportSettings
from agent.embedded.nvmf.subsystem import SubsystemOptions
from agent.errors import OutOfRange, Unavailable
from agent.nvmf import initiator
from agent.nvmf.command import Feature, IoOpcode, LogPage, Property
from agent.nvmf.failure import CommandError, ConnectionLost, ConnectRefused
from agent.nvmf.identify import AnaState
from agent.nvmf.initiator import DISCOVERY_NQN, Options
from agent.nvmf.pdu import Digests
from agent.nvmf.probe import probe
from agent.nvmf.status import Status
from tests.contract.targets import free_port

from .memory import HOST, MIB, NQN, OTHER, MemoryBdev, exported, expose
from .waiting import until

EVERY_DIGEST = [Digests(header, data) for header in (False, True) for data in (False, True)]


@pytest.mark.parametrize("digests", EVERY_DIGEST, ids=lambda each: f"h{each.header:d}d{each.data:d}")
@pytest.mark.parametrize("size", [4096, 8192, 65536, 131072, 131072 + 4096, MIB])
async def test_what_is_written_is_read_back_and_is_on_the_bdev(digests: Digests, size: int) -> None:
    async with exported() as target:
        controller = await target.connect(Options(digests=digests))
        data = os.urandom(size)
        await controller.write(1, 3 * 4096, data)
        assert bytes(target.bdev.content[3 * 4096 : 3 * 4096 + size]) == data
        assert await controller.read(1, 3 * 4096, size) == data
        await controller.close()


@pytest.mark.parametrize("c2h_success", [True, False])
async def test_settings_of_the_transport_change_only_the_way(c2h_success: bool) -> None:
    settings = TransportSettings(c2h_success=c2h_success, in_capsule_data_size=0, max_io_size=16384, max_queue_depth=4)
    async with exported(settings) as target:
        controller = await target.connect(Options(queue_depth=32, io_queues=3))
        data = os.urandom(MIB)
        await controller.write(1, 0, data)
        assert await controller.read(1, 0, MIB) == data
        assert controller.info.max_transfer_bytes == 16384
        await controller.close()


async def test_many_at_once_do_not_mix() -> None:
    async with exported() as target:
        controller = await target.connect(Options(queue_depth=16, io_queues=2))

        async def worker(number: int) -> None:
            for round_ in range(20):
                data = bytes([number, round_]) * 2048
                await controller.write(1, number * 4096, data)
                assert await controller.read(1, number * 4096, 4096) == data

        await asyncio.gather(*(worker(number) for number in range(64)))
        await controller.close()


async def test_512_byte_blocks() -> None:
    async with exported(bdev=MemoryBdev(block_size=512)) as target:
        controller = await target.connect()
        await controller.write(1, 512, b"x" * 512)
        assert await controller.read(1, 0, 1536) == bytes(512) + b"x" * 512 + bytes(512)
        await controller.close()


async def test_zeroes_unmap_and_flush_reach_the_bdev() -> None:
    async with exported() as target:
        controller = await target.connect()
        target.bdev.content[:] = b"\xff" * len(target.bdev.content)
        await controller.write_zeroes(1, 4096, 8192)
        await controller.unmap(1, 16384, 4096)
        await controller.flush(1)
        content = target.bdev.content
        assert content[4096:12288] == bytes(8192)
        assert content[16384:20480] == bytes(4096)
        assert content[:4096] == b"\xff" * 4096
        assert content[12288:16384] == b"\xff" * 4096
        assert content[20480:] == b"\xff" * (len(content) - 20480)
        assert target.bdev.flushes == 1
        await controller.close()


async def test_identity_of_controller_and_namespace() -> None:
    async with exported() as target:
        controller = await target.connect()
        info = await controller.identify()
        assert (info.serial, info.model, info.subnqn) == ("QV1", "Quarry volume", NQN)
        assert info.cntlid == controller.cntlid == 1
        (namespace,) = await controller.namespaces()
        assert namespace.uuid == target.bdev.uuid
        assert namespace.nguid == uuid.UUID(target.bdev.uuid).hex
        assert (namespace.size_bytes, namespace.block_bytes, namespace.ana_group) == (4 * MIB, 4096, 1)
        assert await controller.namespace(2) is None
        await controller.close()


async def test_what_linux_requires_of_identify() -> None:
    """Checks of drivers/nvme/host/{core,fabrics,tcp,multipath}.c (6.12) that refuse or cripple a controller."""
    async with exported() as target:
        controller = await target.connect()
        info = controller.info
        assert info.keep_alive_granularity > 0
        assert info.sgl_support & 3
        assert info.capsule_data_offset == 0
        assert info.command_capsule >= 4
        assert info.response_capsule >= 1
        assert info.max_commands > 0
        assert 0 < info.max_namespaces <= info.namespaces
        assert info.ana_groups <= info.ana_group_max
        assert info.controller_type == 1
        assert info.version == 0x20000
        assert (info.sq_entry_size, info.cq_entry_size) == (0x66, 0x44)
        capabilities = await controller.admin.get_property(Property.CAP, wide=True)
        assert capabilities & 0xFFFF == 127
        assert capabilities >> 37 & 1
        assert capabilities >> 48 & 0xF == 0
        effects = await controller.admin.log_page(LogPage.COMMAND_EFFECTS, 4096)
        assert effects[1024 + 4 * IoOpcode.WRITE] & 3 == 3
        assert await controller.ana_states() == {1: AnaState.OPTIMIZED}
        await controller.close()


async def test_several_namespaces() -> None:
    async with exported() as target:
        second = MemoryBdev("mem1", 8 * MIB)
        expose(target.subsystem, second, 7)
        controller = await target.connect()
        assert [each.nsid for each in await controller.namespaces()] == [1, 7]
        await controller.write(7, 0, b"7" * 4096)
        assert second.content[:4096] == b"7" * 4096
        assert target.bdev.content[:4096] == bytes(4096)
        assert await controller.ana_states() == {1: AnaState.OPTIMIZED, 7: AnaState.OPTIMIZED}
        await controller.close()


@pytest.mark.parametrize(("offset", "length"), [(1, 4096), (0, 100), (-4096, 4096), (0, 0)])
async def test_ranges_that_are_not_blocks_are_refused_here(offset: int, length: int) -> None:
    async with exported() as target:
        controller = await target.connect()
        with pytest.raises(OutOfRange):
            await controller.read(1, offset, length)
        await controller.close()


async def test_error_statuses() -> None:
    async with exported() as target:
        controller = await target.connect()
        with pytest.raises(CommandError) as beyond:
            await controller.read(1, 4 * MIB, 4096)
        assert beyond.value.status == Status.LBA_OUT_OF_RANGE
        with pytest.raises(CommandError) as absent:
            await controller.flush(9)
        assert absent.value.status == Status.INVALID_NAMESPACE
        assert absent.value.dnr
        with pytest.raises(CommandError) as page:
            await controller.admin.log_page(LogPage.DISCOVERY, 1024)
        assert page.value.status == Status.INVALID_LOG_PAGE
        assert await controller.read(1, 0, 4096) == bytes(4096)
        await controller.close()


async def test_failures_of_the_bdev_become_statuses() -> None:
    class Full(MemoryBdev):
        async def do_write(self, offset: int, data: object) -> None:
            raise OSError(28, "no space")

        async def do_read(self, offset: int, length: int) -> bytes:
            raise OSError(5, "I/O error")

    async with exported(bdev=Full()) as target:
        controller = await target.connect()
        with pytest.raises(CommandError) as full:
            await controller.write(1, 0, bytes(4096))
        with pytest.raises(CommandError) as broken:
            await controller.read(1, 0, 4096)
        assert full.value.status == Status.INTERNAL_ERROR
        assert broken.value.status == Status.INTERNAL_ERROR
        await controller.close()


async def test_features() -> None:
    async with exported() as target:
        controller = await target.connect(Options(keep_alive_s=30))
        admin = controller.admin
        assert (await admin.get_feature(Feature.KEEP_ALIVE_TIMER))[0] == 30_000
        assert (await admin.get_feature(Feature.NUMBER_OF_QUEUES))[0] == 126 | 126 << 16
        with pytest.raises(CommandError) as queues:
            await admin.set_feature(Feature.NUMBER_OF_QUEUES, 1 | 1 << 16)
        assert queues.value.status == Status.COMMAND_SEQUENCE_ERROR  # there is an I/O queue already
        await admin.set_feature(Feature.HOST_BEHAVIOR, 0, b"\x01".ljust(512, b"\0"))
        assert (await admin.get_feature(Feature.HOST_BEHAVIOR, 512))[1][:3] == b"\x01\0\0"
        with pytest.raises(CommandError) as kato:
            await admin.set_feature(Feature.KEEP_ALIVE_TIMER, 0)
        assert kato.value.status == Status.KEEP_ALIVE_INVALID
        await controller.close()


async def test_orderly_close_leaves_nothing_on_the_target() -> None:
    async with exported() as target:
        controller = await target.connect(Options(io_queues=4))
        assert len(target.subsystem.controllers[1].queues) == 5  # type: ignore[attr-defined]
        await controller.close()
        await until(lambda: not target.subsystem.controllers)
        with pytest.raises(ConnectionLost):
            await controller.read(1, 0, 4096)


async def test_a_cancelled_read_does_not_disturb_the_next() -> None:
    async with exported() as target:
        controller = await target.connect(Options(queue_depth=2))
        target.bdev.content[4096:8192] = b"2" * 4096
        await controller.namespaces()
        target.bdev.gate.clear()
        waiting = [asyncio.create_task(controller.read(1, 0, 4096)) for _ in range(2)]
        await until(lambda: target.subsystem.namespaces[1].outstanding == 2)
        for task in waiting:
            task.cancel()
        later = asyncio.create_task(controller.read(1, 4096, 4096))
        await asyncio.gather(*waiting, return_exceptions=True)
        target.bdev.gate.set()
        assert await later == b"2" * 4096
        await controller.close()


async def test_a_controller_that_stops_answering_times_out() -> None:
    async with exported() as target:
        controller = await target.connect(Options(io_timeout_s=0.1))
        await controller.namespaces()
        lost: list[Exception] = []
        controller.on_disconnect(lost.append)
        target.bdev.gate.clear()
        with pytest.raises(Exception, match=r"did not answer in 0\.1 s"):
            await controller.read(1, 0, 4096)
        assert len(lost) == 1
        assert not controller.connected
        target.bdev.gate.set()
        await controller.close()


async def test_nobody_listens() -> None:
    with pytest.raises(Unavailable, match="cannot connect to NVMe/TCP at 127"):
        await initiator.connect("127.0.0.1", free_port(), NQN, HOST)


async def test_a_server_that_hangs_up_or_talks_nonsense_is_unavailable() -> None:
    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 20)
        writer.close()

    server = await asyncio.start_server(nonsense, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(Unavailable):
        await initiator.connect("127.0.0.1", port, NQN, HOST, Options(timeout_s=2))
    server.close()


async def test_discovery_shows_what_a_host_may_see() -> None:
    async with exported() as target:
        hidden = target.target.create("nqn.2026-11.storage.quarry:vol:hidden", SubsystemOptions())
        hidden.add_listener(target.address, AnaState.OPTIMIZED)
        controller = await target.connect(nqn=DISCOVERY_NQN)
        entries = await controller.discover()
        assert [(each.subnqn, each.address, each.service) for each in entries] == [(NQN, "127.0.0.1", str(target.port))]
        with pytest.raises(CommandError):
            await controller.admin.log_page(LogPage.ANA, 16)
        await controller.close()
        other = await target.connect(host=OTHER, nqn=DISCOVERY_NQN)
        assert await other.discover() == []
        await other.close()


async def test_probe_reports_and_reads_only() -> None:
    async with exported() as target:
        before = bytes(target.bdev.content)
        report = await probe("127.0.0.1", target.port, NQN, hostnqn=HOST, samples=20)
        assert report.controller.model == "Quarry volume"
        assert [each.uuid for each in report.namespaces] == [target.bdev.uuid]
        assert len(report.read_latencies_s) == 20
        assert report.connect_s > 0
        assert report.identify_s > 0
        assert bytes(target.bdev.content) == before
        with pytest.raises(ConnectRefused):
            await probe("127.0.0.1", target.port, NQN)
        await until(lambda: not target.subsystem.controllers)
