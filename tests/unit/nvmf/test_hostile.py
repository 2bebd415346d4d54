"""Bytes that no host should send: the target answers with a TermReq or hangs up, and goes on serving others."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.embedded.nvmf.settings import TransportSettings
from agent.nvmf import pdu as pdus
from agent.nvmf.admin import ConnectData
from agent.nvmf.command import (
    SGL_IN_CAPSULE,
    SGL_TRANSPORT,
    AdminOpcode,
    Command,
    Completion,
    FabricsType,
    IoOpcode,
    Property,
)
from agent.nvmf.digest import crc32c
from agent.nvmf.initiator import host_identifier
from agent.nvmf.pdu import Digests, FatalError, Initialization, Pdu, PduFlag, PduType, Transfer
from agent.nvmf.status import Status

from .memory import HOST, MIB, NQN, Exported, exported
from .waiting import until

ANSWERS = dict.fromkeys((PduType.IC_RESP, PduType.CAPSULE_RESP, PduType.C2H_DATA, PduType.R2T), 1 << 20)
ANSWERS[PduType.C2H_TERM_REQ] = pdus.TERM_DATA_MAX


class RawHost:
    """A host that sends what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.digests = Digests()

    def send(self, kind: PduType, specific: bytes, data: bytes = b"", flags: int = 0) -> None:
        self.writer.writelines(pdus.encode(kind, specific, data, flags=flags, digests=self.digests))

    def raw(self, data: bytes) -> None:
        self.writer.write(data)

    async def receive(self) -> Pdu:
        async with asyncio.timeout(5):
            return await pdus.read_pdu(self.reader, ANSWERS, self.digests)

    async def initialize(self, digests: Digests = pdus.NO_DIGESTS) -> None:
        self.send(PduType.IC_REQ, Initialization(digests=digests).pack())
        assert (await self.receive()).type is PduType.IC_RESP
        self.digests = digests

    async def command(self, command: Command, data: bytes = b"") -> Completion:
        self.send(PduType.CAPSULE_CMD, command.pack(), data)
        answer = await self.receive()
        assert answer.type is PduType.CAPSULE_RESP, answer
        return Completion.unpack(answer.header, 8)

    async def connect(self, qid: int = 0, cntlid: int = 0xFFFF, depth: int = 32) -> Completion:
        data = ConnectData(NQN, HOST, host_identifier(HOST), qid, depth)
        command = Command(
            AdminOpcode.FABRICS, FabricsType.CONNECT, sgl_type=SGL_IN_CAPSULE, sgl_length=1024,
            cdw10=qid << 16, cdw11=depth - 1,
        )  # fmt: skip
        return await self.command(command, data.pack(cntlid))

    async def enable(self) -> None:
        value = 1 | 6 << 16 | 4 << 20
        command = Command(AdminOpcode.FABRICS, FabricsType.PROPERTY_SET, cdw11=Property.CC, cdw12=value)
        assert (await self.command(command)).status == 0

    async def terminated(self) -> FatalError:
        """The reason of the C2HTermReq that comes; then the connection ends."""
        while (pdu := await self.receive()).type is not PduType.C2H_TERM_REQ:
            pass
        assert len(pdu.data) > 0
        self.writer.write_eof()
        async with asyncio.timeout(5):
            assert await self.reader.read() == b""
        return FatalError(struct.unpack_from("<H", pdu.header, 8)[0])

    async def hung_up(self) -> bool:
        """True when the target closes without a word."""
        try:
            async with asyncio.timeout(5):
                return await self.reader.read(1) == b""
        except ConnectionResetError:
            return True


@asynccontextmanager
async def raw_host(target: Exported) -> AsyncIterator[RawHost]:
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    try:
        yield RawHost(reader, writer)
    finally:
        writer.close()


async def _still_serves(target: Exported) -> None:
    controller = await target.connect()
    await controller.write(1, 0, b"fine" * 1024)
    assert await controller.read(1, 0, 4096) == b"fine" * 1024
    await controller.close()


def _common(kind: int, flags: int, header: int, offset: int, total: int) -> bytes:
    return struct.pack("<BBBBI", kind, flags, header, offset, total)


BEFORE_INITIALIZATION = {
    "command first": (_common(4, 0, 72, 0, 72) + bytes(64), FatalError.SEQUENCE),
    "unknown type": (_common(0x77, 0, 8, 0, 8), FatalError.INVALID_HEADER),
    "header length": (_common(0, 0, 127, 0, 128) + bytes(120), FatalError.INVALID_HEADER),
    "short": (_common(0, 0, 128, 0, 8), FatalError.INVALID_HEADER),
    "huge": (_common(0, 0, 128, 0, 0xFFFFFFFF), FatalError.INVALID_HEADER),
    "version": (_common(0, 0, 128, 0, 128) + struct.pack("<HBBI112x", 9, 0, 0, 0), FatalError.INVALID_HEADER),
    "alignment": (_common(0, 0, 128, 0, 128) + struct.pack("<HBBI112x", 0, 99, 0, 0), FatalError.INVALID_HEADER),
    "http": (b"GET / HTTP/1.1\r\nHost: target\r\n\r\n", FatalError.INVALID_HEADER),
}


@pytest.mark.parametrize("case", BEFORE_INITIALIZATION)
async def test_before_the_initialization(case: str) -> None:
    sent, expected = BEFORE_INITIALIZATION[case]
    async with exported() as target:
        async with raw_host(target) as host:
            host.raw(sent)
            assert await host.terminated() is expected
        await _still_serves(target)


async def _second_initialization(host: RawHost) -> None:
    host.send(PduType.IC_REQ, Initialization().pack())


async def _data_without_transfer(host: RawHost) -> None:
    host.send(PduType.H2C_DATA, Transfer(0, 9, 0, 512).pack(), bytes(512), PduFlag.LAST)


async def _response_from_host(host: RawHost) -> None:
    host.send(PduType.CAPSULE_RESP, bytes(16))


async def _too_much_in_capsule(host: RawHost) -> None:
    host.send(PduType.CAPSULE_CMD, Command(AdminOpcode.SET_FEATURES).pack(), bytes(100_000))


async def _capsule_data_of_another_length(host: RawHost) -> None:
    command = Command(AdminOpcode.SET_FEATURES, sgl_type=SGL_IN_CAPSULE, sgl_length=100)
    host.send(PduType.CAPSULE_CMD, command.pack(), bytes(512))


async def _capsule_data_at_an_offset(host: RawHost) -> None:
    command = Command(AdminOpcode.SET_FEATURES, sgl_type=SGL_IN_CAPSULE, sgl_length=512, sgl_address=64)
    host.send(PduType.CAPSULE_CMD, command.pack(), bytes(512))


async def _unknown_sgl(host: RawHost) -> None:
    host.send(PduType.CAPSULE_CMD, Command(AdminOpcode.IDENTIFY, sgl_type=0x44, sgl_length=4096).pack())


async def _enormous_transfer(host: RawHost) -> None:
    command = Command(AdminOpcode.IDENTIFY, sgl_type=SGL_TRANSPORT, sgl_length=0xFFFFFFFF)
    host.send(PduType.CAPSULE_CMD, command.pack())


async def _data_offset_beyond_the_end(host: RawHost) -> None:
    host.raw(_common(4, 0, 72, 200, 80) + bytes(72))


async def _more_commands_than_entries(host: RawHost) -> None:
    for cid in range(40):
        host.send(PduType.CAPSULE_CMD, Command(AdminOpcode.ASYNC_EVENT_REQUEST, cid=cid).pack())
        host.send(PduType.CAPSULE_CMD, Command(AdminOpcode.SET_FEATURES, cid=cid, sgl_length=512).pack())


AFTER_CONNECT: dict[Callable[[RawHost], Awaitable[None]], FatalError] = {
    _second_initialization: FatalError.SEQUENCE,
    _data_without_transfer: FatalError.SEQUENCE,
    _response_from_host: FatalError.SEQUENCE,
    _too_much_in_capsule: FatalError.INVALID_HEADER,
    _capsule_data_of_another_length: FatalError.INVALID_HEADER,
    _capsule_data_at_an_offset: FatalError.INVALID_HEADER,
    _unknown_sgl: FatalError.UNSUPPORTED,
    _enormous_transfer: FatalError.LIMIT_EXCEEDED,
    _data_offset_beyond_the_end: FatalError.INVALID_HEADER,
    _more_commands_than_entries: FatalError.SEQUENCE,
}


@pytest.mark.parametrize("misdeed", AFTER_CONNECT, ids=lambda each: each.__name__.strip("_"))
async def test_after_the_connect(misdeed: Callable[[RawHost], Awaitable[None]]) -> None:
    async with exported() as target:
        async with raw_host(target) as host:
            await host.initialize()
            assert (await host.connect()).status == 0
            await host.enable()
            await misdeed(host)
            assert await host.terminated() is AFTER_CONNECT[misdeed]
        await until(lambda: not target.subsystem.controllers)
        await _still_serves(target)


@asynccontextmanager
async def io_queue(target: Exported, digests: Digests = pdus.NO_DIGESTS) -> AsyncIterator[RawHost]:
    """A raw host with a connected I/O queue."""
    async with raw_host(target) as admin, raw_host(target) as io:
        await admin.initialize()
        cntlid = (await admin.connect()).result & 0xFFFF
        await admin.enable()
        await io.initialize(digests)
        assert (await io.connect(1, cntlid)).status == 0
        yield io


async def _ask_to_write(host: RawHost, blocks: int) -> Transfer:
    command = Command(IoOpcode.WRITE, 1, cid=7, sgl_length=blocks * 4096, cdw12=blocks - 1)
    host.send(PduType.CAPSULE_CMD, command.pack())
    answer = await host.receive()
    assert answer.type is PduType.R2T
    wanted = Transfer.unpack(answer.header)
    assert (wanted.cid, wanted.offset, wanted.length) == (7, 0, blocks * 4096)
    return wanted


@pytest.mark.parametrize("digests", [Digests(), Digests(True, True)], ids=["plain", "digests"])
@pytest.mark.parametrize("part", [1, 4096, 5000, 16384])
async def test_written_data_may_come_in_many_pdus(part: int, digests: Digests) -> None:
    data = bytes(range(256)) * 64
    async with exported() as target, io_queue(target, digests) as host:
        wanted = await _ask_to_write(host, 4)
        if part == 1:
            data_parts = [(0, 1), (1, len(data) - 1)]
        else:
            data_parts = [(at, min(part, len(data) - at)) for at in range(0, len(data), part)]
        for at, size in data_parts:
            flags = PduFlag.LAST if at + size == len(data) else PduFlag.NONE
            host.send(PduType.H2C_DATA, Transfer(7, wanted.tag, at, size).pack(), data[at : at + size], flags)
        answer = Completion.unpack((await host.receive()).header, 8)
        assert (answer.cid, answer.status) == (7, 0)
        assert bytes(target.bdev.content[: len(data)]) == data


@pytest.mark.parametrize(
    ("at", "length", "cid", "expected"),
    [
        (4096, 4096, 7, FatalError.OUT_OF_RANGE),
        (0, 5 * 4096, 7, FatalError.OUT_OF_RANGE),
        (0, 4096, 8, FatalError.SEQUENCE),
        (0xFFFFF000, 4096, 7, FatalError.OUT_OF_RANGE),
    ],
)
async def test_written_data_out_of_place(at: int, length: int, cid: int, expected: FatalError) -> None:
    async with exported() as target:
        async with io_queue(target) as host:
            wanted = await _ask_to_write(host, 4)
            host.send(PduType.H2C_DATA, Transfer(cid, wanted.tag, at, length).pack(), bytes(length))
            assert await host.terminated() is expected
        assert not any(target.bdev.content)
        await _still_serves(target)


async def test_a_wrong_header_digest_ends_the_connection() -> None:
    async with exported() as target, io_queue(target, Digests(True, True)) as host:
        (header,) = pdus.encode(PduType.CAPSULE_CMD, Command(IoOpcode.FLUSH, 1).pack(), digests=host.digests)
        host.raw(bytes(header[:-1]) + bytes([header[-1] ^ 1]))
        assert await host.terminated() is FatalError.HEADER_DIGEST


async def test_a_wrong_data_digest_costs_one_command() -> None:
    """NVMe TCP Transport 1.0, section 3.3.1.1.2.1: a transient transport error, the connection goes on."""
    async with exported() as target, io_queue(target, Digests(True, True)) as host:
        command = Command(IoOpcode.WRITE, 1, cid=3, sgl_type=SGL_IN_CAPSULE, sgl_length=4096)
        header, data, digest = pdus.encode(PduType.CAPSULE_CMD, command.pack(), b"d" * 4096, digests=host.digests)
        assert bytes(digest) == crc32c(b"d" * 4096)
        host.raw(bytes(header) + bytes(data) + bytes(4))
        answer = Completion.unpack((await host.receive()).header, 8)
        assert (answer.cid, answer.status) == (3, Status.TRANSIENT_TRANSPORT_ERROR)
        assert not any(target.bdev.content)
        host.raw(bytes(header) + bytes(data) + bytes(digest))
        assert Completion.unpack((await host.receive()).header, 8).status == 0
        assert target.bdev.content[:4096] == b"d" * 4096


async def test_commands_before_connect_are_refused() -> None:
    async with exported() as target, raw_host(target) as host:
        await host.initialize()
        assert (await host.command(Command(IoOpcode.FLUSH, 1))).status == Status.COMMAND_SEQUENCE_ERROR
        get = Command(AdminOpcode.FABRICS, FabricsType.PROPERTY_GET)
        assert (await host.command(get)).status == Status.COMMAND_SEQUENCE_ERROR
        assert (await host.connect(depth=1)).status == Status.CONNECT_INVALID_PARAMETERS
        assert (await host.connect(depth=5000)).status == Status.CONNECT_INVALID_PARAMETERS
        assert (await host.connect(cntlid=5)).status == Status.CONNECT_INVALID_PARAMETERS
        assert (await host.connect(qid=1, cntlid=1)).status == Status.CONNECT_INVALID_PARAMETERS
        assert (await host.connect()).status == 0
        assert (await host.connect()).status == Status.INVALID_OPCODE
        assert (await host.command(Command(AdminOpcode.KEEP_ALIVE))).status == Status.COMMAND_SEQUENCE_ERROR


async def test_whoever_never_speaks_is_hung_up_on() -> None:
    async with exported(TransportSettings(connect_timeout_s=0.1)) as target:
        async with raw_host(target) as silent, raw_host(target) as slow, raw_host(target) as half:
            await slow.initialize()
            half.raw(b"\0\0\x80")
            assert await silent.hung_up()
            assert await slow.hung_up()
            assert await half.hung_up()
        await until(lambda: target.target.ports.unassociated == 0)


async def test_a_host_that_does_not_read_is_not_served_without_bound() -> None:
    async with exported() as target, io_queue(target) as host:
        read = Command(IoOpcode.READ, 1, cid=1, sgl_length=131072, cdw12=31).pack()
        host.writer.transport.pause_reading()  # type: ignore[attr-defined]
        host.reader._limit = 1
        (queue,) = [each for each in target.subsystem.controllers[1].queues.values() if each.qid]  # type: ignore[attr-defined]
        for cid in range(16):
            host.send(PduType.CAPSULE_CMD, read[:2] + struct.pack("<H", cid) + read[4:])
        await until(lambda: target.subsystem.namespaces[1].outstanding == 0)
        assert queue._writer.transport.get_write_buffer_size() < 16 * 131072 + MIB
        await _still_serves(target)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*PduType, 0x0A, 0xFF]),
            st.integers(0, 255),
            st.sampled_from([8, 24, 72, 128, 0, 255]),
            st.integers(0, 255),
            st.one_of(st.integers(0, 300), st.integers(0, 0xFFFFFFFF)),
            st.binary(max_size=300),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_bytes_leave_the_target_serving(
    pieces: list[tuple[int, int, int, int, int, bytes]],
) -> None:
    async def attack() -> None:
        async with exported() as target:
            for initialized in (False, True):
                async with raw_host(target) as host:
                    if initialized:
                        await host.initialize()
                        assert (await host.connect()).status == 0
                    for kind, flags, header, offset, total, body in pieces:
                        host.raw(_common(kind, flags, header, offset, total) + body)
                    host.writer.write_eof()
                    async with asyncio.timeout(5):
                        try:
                            while await host.reader.read(65536):
                                pass
                        except ConnectionResetError:
                            pass
            await _still_serves(target)

    asyncio.run(attack())


async def test_a_write_that_was_taken_runs_to_its_end_when_its_host_breaks_the_protocol() -> None:
    """Half done, it would leave the members of a mirror different."""
    async with exported() as target, raw_host(target) as admin, raw_host(target) as host:
        await admin.initialize()
        cntlid = (await admin.connect()).result & 0xFFFF
        await admin.enable()
        await host.initialize()
        assert (await host.connect(1, cntlid)).status == 0
        target.bdev.gate.clear()
        command = Command(IoOpcode.WRITE, 1, cid=3, sgl_type=SGL_IN_CAPSULE, sgl_length=4096)
        host.send(PduType.CAPSULE_CMD, command.pack(), b"half" * 1024)
        host.raw(_common(0x77, 0, 8, 0, 8))
        assert (await host.receive()).type is PduType.C2H_TERM_REQ
        target.bdev.gate.set()
        await until(lambda: target.bdev.content[:4096] == b"half" * 1024)
        host.writer.write_eof()
        async with asyncio.timeout(5):
            assert await host.reader.read() == b""  # no answer behind the TermReq
