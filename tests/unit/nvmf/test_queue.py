"""A host's queue against a controller that is scripted by the test: legal oddities, and bytes it should not send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from agent.errors import DeadlineExceeded, Unavailable
from agent.nvmf import pdu as pdus
from agent.nvmf.command import AdminOpcode, Command, Completion, IoOpcode
from agent.nvmf.failure import ConnectionLost
from agent.nvmf.pdu import Digests, FatalError, Initialization, Pdu, PduFlag, PduType, ProtocolError, Transfer
from agent.nvmf.queue import Queue, open_queue

from .waiting import until

FROM_HOST = {PduType.IC_REQ: 0, PduType.CAPSULE_CMD: 8192, PduType.H2C_DATA: 1 << 20, PduType.H2C_TERM_REQ: 128}
MAX_H2C = 4096


class Script:
    """The controller's side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, digests: Digests) -> None:
        self.reader = reader
        self.writer = writer
        self.digests = digests

    def send(self, kind: PduType, specific: bytes, data: bytes = b"", flags: int = 0) -> None:
        self.writer.writelines(pdus.encode(kind, specific, data, flags=flags, digests=self.digests, alignment=16))

    async def receive(self) -> Pdu:
        return await pdus.read_pdu(self.reader, FROM_HOST, self.digests)

    async def command(self) -> Command:
        return Command.unpack((await self.receive()).header, 8)

    def complete(self, cid: int, status: int = 0) -> None:
        self.send(PduType.CAPSULE_RESP, Completion(status, cid=cid).pack())


Play = Callable[[Script], Awaitable[None]]


@asynccontextmanager
async def scripted(
    play: Play, digests: Digests = pdus.NO_DIGESTS, answer: Initialization | None = None
) -> AsyncIterator[Queue]:
    failures: list[BaseException] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script = Script(reader, writer, pdus.NO_DIGESTS)
        try:
            await script.receive()
            response = answer or Initialization(digests=digests, limit=MAX_H2C, alignment=3)
            script.send(PduType.IC_RESP, response.pack())
            script.digests = digests
            await play(script)
            await reader.read()
        except (AssertionError, ProtocolError) as error:
            failures.append(error)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        queue = await open_queue("127.0.0.1", server.sockets[0].getsockname()[1], 4, digests, 2)
        try:
            yield queue
        finally:
            queue.close()
            await queue.wait_closed()
    finally:
        server.close()
        assert not failures, failures


@pytest.mark.parametrize("digests", [Digests(), Digests(True, True)], ids=["plain", "digests"])
async def test_written_data_go_in_pdus_as_small_as_the_controller_wants(digests: Digests) -> None:
    received = bytearray(20000)

    async def play(script: Script) -> None:
        command = await script.command()
        for offset, length in ((0, 12288), (12288, 7712)):
            script.send(PduType.R2T, Transfer(command.cid, 5, offset, length).pack())
            taken = 0
            while taken < length:
                pdu = await script.receive()
                part = Transfer.unpack(pdu.header)
                assert (part.cid, part.tag, part.offset) == (command.cid, 5, offset + taken)
                assert part.length == len(pdu.data) <= MAX_H2C
                assert pdu.header[3] % 16 == 0  # the alignment that ICResp asked for
                received[part.offset : part.offset + part.length] = pdu.data
                taken += part.length
                assert bool(pdu.flags & PduFlag.LAST) == (taken == length)
        script.complete(command.cid)

    async with scripted(play, digests) as queue:
        data = bytes(range(250)) * 80
        completion, _ = await queue.submit(Command(IoOpcode.WRITE, 1), data, timeout_s=2)
        assert completion.status == 0
        assert bytes(received) == data


async def test_read_data_come_in_parts_and_answers_out_of_order() -> None:
    async def play(script: Script) -> None:
        first, second = await script.command(), await script.command()
        script.send(PduType.C2H_DATA, Transfer(second.cid, 0, 0, 3).pack(), b"sec")
        script.send(PduType.C2H_DATA, Transfer(first.cid, 0, 0, 5).pack(), b"first", PduFlag.LAST)
        script.send(PduType.C2H_DATA, Transfer(second.cid, 0, 3, 3).pack(), b"ond", PduFlag.LAST | PduFlag.SUCCESS)
        script.complete(first.cid, 0x281)

    async with scripted(play) as queue:
        first, second = await asyncio.gather(
            queue.submit(Command(IoOpcode.READ, 1), incoming=5, timeout_s=2),
            queue.submit(Command(IoOpcode.READ, 1), incoming=6, timeout_s=2),
        )
        assert (first[0].status, first[1]) == (0x281, b"first")
        assert (second[0].status, second[1]) == (0, b"second")


async def test_depth_is_kept() -> None:
    most = 0

    async def play(script: Script) -> None:
        nonlocal most
        open_ = []
        for _ in range(12):
            open_.append(await script.command())
            most = max(most, len(open_))
            if len(open_) == 4:
                for command in open_:
                    script.complete(command.cid)
                open_ = []

    async with scripted(play) as queue:
        await asyncio.gather(*(queue.submit(Command(IoOpcode.FLUSH, 1), timeout_s=2) for _ in range(12)))
    assert most == 4


async def test_damaged_data_fail_the_read() -> None:
    async def play(script: Script) -> None:
        command = await script.command()
        header, data, _ = pdus.encode(
            PduType.C2H_DATA, Transfer(command.cid, 0, 0, 4).pack(), b"data",
            flags=PduFlag.LAST | PduFlag.SUCCESS, digests=script.digests,
        )  # fmt: skip
        script.writer.write(bytes(header) + bytes(data) + bytes(4))

    async with scripted(play, Digests(True, True)) as queue:
        with pytest.raises(ConnectionLost, match="damaged"):
            await queue.submit(Command(IoOpcode.READ, 1), incoming=4, timeout_s=2)


def _misdeeds() -> dict[str, tuple[Callable[[Script, int], None], FatalError]]:
    def sends(
        kind: PduType, specific: Callable[[int], bytes], data: bytes = b"", flags: int = 0
    ) -> Callable[..., None]:
        return lambda script, cid: script.send(kind, specific(cid), data, flags)

    return {
        "answer to another command": (lambda script, cid: script.complete(cid + 1), FatalError.SEQUENCE),
        "data of another command": (
            sends(PduType.C2H_DATA, lambda cid: Transfer(cid + 1, 0, 0, 4).pack(), b"data"), FatalError.SEQUENCE,
        ),
        "more data than asked for": (
            sends(PduType.C2H_DATA, lambda cid: Transfer(cid, 0, 0, 4097).pack(), bytes(4097)), FatalError.OUT_OF_RANGE,
        ),
        "data with a gap": (
            sends(PduType.C2H_DATA, lambda cid: Transfer(cid, 0, 8, 4).pack(), b"data"), FatalError.OUT_OF_RANGE,
        ),
        "success before the last": (
            sends(PduType.C2H_DATA, lambda cid: Transfer(cid, 0, 0, 4).pack(), b"data", PduFlag.SUCCESS),
            FatalError.INVALID_HEADER,
        ),
        "data wanted of a read": (
            sends(PduType.R2T, lambda cid: Transfer(cid, 1, 0, 4096).pack()), FatalError.OUT_OF_RANGE,
        ),
        "a command": (sends(PduType.CAPSULE_CMD, lambda cid: bytes(64)), FatalError.SEQUENCE),
    }  # fmt: skip


@pytest.mark.parametrize("case", _misdeeds())
async def test_a_controller_that_breaks_the_protocol_is_left(case: str) -> None:
    misdeed, expected = _misdeeds()[case]
    told: list[int] = []

    async def play(script: Script) -> None:
        command = await script.command()
        misdeed(script, command.cid)
        pdu = await script.receive()
        assert pdu.type is PduType.H2C_TERM_REQ
        told.append(pdu.header[8])

    async with scripted(play) as queue:
        with pytest.raises(ConnectionLost):
            await queue.submit(Command(IoOpcode.READ, 1), incoming=4096, timeout_s=2)
        with pytest.raises(ConnectionLost):
            await queue.submit(Command(IoOpcode.READ, 1), incoming=4096, timeout_s=2)
        await until(lambda: told)
    assert told == [expected]


async def test_a_termination_is_reported_with_its_reason() -> None:
    async def play(script: Script) -> None:
        await script.command()
        error = ProtocolError(FatalError.LIMIT_EXCEEDED, "", 40, bytes(72))
        script.writer.write(pdus.encode_termination(PduType.C2H_TERM_REQ, error))

    async with scripted(play) as queue:
        with pytest.raises(ConnectionLost, match="limit_exceeded"):
            await queue.submit(Command(AdminOpcode.IDENTIFY), incoming=4096, timeout_s=2)


@pytest.mark.parametrize(
    "answer",
    [
        Initialization(version=1, limit=MAX_H2C),
        Initialization(limit=100),
        Initialization(limit=MAX_H2C, digests=Digests(True, False)),
    ],
)
async def test_an_unusable_initialization_is_unavailable(answer: Initialization) -> None:
    async def play(script: Script) -> None:
        return None

    with pytest.raises(Unavailable, match="unusable ICResp"):
        async with scripted(play, answer=answer):
            pass


async def test_a_controller_that_stopped_reading_does_not_hold_up_the_close() -> None:
    over = asyncio.Event()

    async def play(script: Script) -> None:
        command = await script.command()
        script.send(PduType.R2T, Transfer(command.cid, 5, 0, 16 << 20).pack())
        await over.wait()
        script.writer.transport.abort()

    async with scripted(play) as queue:
        try:
            with pytest.raises(DeadlineExceeded):
                await queue.submit(Command(IoOpcode.WRITE, 1), bytes(16 << 20), timeout_s=0.3)
            async with asyncio.timeout(2):
                await queue.wait_closed()
        finally:
            over.set()


async def test_a_controller_may_ask_for_each_byte_once() -> None:
    async def play(script: Script) -> None:
        command = await script.command()
        for _ in range(2):
            script.send(PduType.R2T, Transfer(command.cid, 5, 0, 4096).pack())
        while (pdu := await script.receive()).type is PduType.H2C_DATA:
            pass
        assert pdu.type is PduType.H2C_TERM_REQ

    async with scripted(play) as queue:
        with pytest.raises(ConnectionLost):
            await queue.submit(Command(IoOpcode.WRITE, 1), bytes(4096), timeout_s=2)
