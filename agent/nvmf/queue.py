"""A queue of a host: one TCP connection with commands going out and answers coming in (NVMe TCP Transport 1.0)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.errors import DeadlineExceeded, Unavailable
from agent.nvmf import pdu as pdus
from agent.nvmf.command import CQE_BYTES, SGL_IN_CAPSULE, Command, Completion
from agent.nvmf.failure import ConnectionLost
from agent.nvmf.pdu import Digests, FatalError, Initialization, Pdu, PduFlag, PduType, ProtocolError, Transfer
from agent.tasks.failures import FAILURES

log = logging.getLogger(__name__)

TRANSFER_MAX = 16 << 20
"""No command of ours asks for more data, so a C2HData PDU with more is garbage."""

_FROM_CONTROLLER = {
    PduType.CAPSULE_RESP: 0,
    PduType.C2H_DATA: TRANSFER_MAX,
    PduType.R2T: 0,
    PduType.C2H_TERM_REQ: pdus.TERM_DATA_MAX,
}
Buffer = bytes | bytearray | memoryview


@dataclass(slots=True)
class _Pending:
    """A command that waits for its completion. Received data is `whole` when it came in one PDU."""

    answered: asyncio.Future[Completion]
    outgoing: Buffer
    incoming: int
    asked: int = 0
    whole: bytes = b""
    parts: bytearray = field(default_factory=bytearray)
    intact: bool = True


class Queue:
    """Commands in, completions out. Made by `open_queue`; ends for good when the connection ends."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, depth: int) -> None:
        self._reader = reader
        self._writer = writer
        self._slots = asyncio.Semaphore(depth)
        self._pending: dict[int, _Pending] = {}
        self._next_cid = 0
        self._digests = Digests()
        self._alignment = 4
        self._max_h2c = 0
        self._receiver: asyncio.Task[None] | None = None
        self.failure: Exception | None = None
        self.on_end: Callable[[Exception], None] | None = None

    async def initialize(self, digests: Digests) -> None:
        """ICReq and ICResp; raises ProtocolError on nonsense, IncompleteReadError when the controller hangs up."""
        request = Initialization(digests=digests)
        self._writer.writelines(pdus.encode(PduType.IC_REQ, request.pack()))
        answer = await pdus.read_pdu(self._reader, {PduType.IC_RESP: 0, PduType.C2H_TERM_REQ: pdus.TERM_DATA_MAX})
        if answer.type is PduType.C2H_TERM_REQ:
            raise ConnectionLost(f"the controller ended the connection: {pdus.describe_termination(answer)}")
        response = Initialization.unpack(answer.header)
        if response.version != 0 or response.limit < 4096 or response.digests != digests:
            raise ProtocolError(FatalError.UNSUPPORTED, f"unusable ICResp {response}", 8, answer.header)
        self._digests = digests
        self._alignment = (response.alignment + 1) * 4
        self._max_h2c = response.limit
        self._receiver = asyncio.create_task(self._receive(), name="nvme-tcp host queue")

    async def submit(
        self, command: Command, data: Buffer = b"", *, incoming: int = 0, timeout_s: float | None
    ) -> tuple[Completion, bytes]:
        """Send one command and wait; returns its completion and the data, `incoming` bytes at most.

        Raises ConnectionLost, or DeadlineExceeded: then the queue is closed, because the command may still be running.
        """
        await self._slots.acquire()
        if self.failure is not None:
            self._slots.release()
            raise ConnectionLost("the connection to the controller is closed") from self.failure
        pending = _Pending(asyncio.get_running_loop().create_future(), data, incoming)
        command.cid = self._take_cid()
        command.sgl_length = len(data) or incoming
        self._pending[command.cid] = pending
        try:
            self._send_command(command, data)
            async with asyncio.timeout(timeout_s):
                await self._writer.drain()
                completion = await pending.answered
        except TimeoutError as error:
            self.close(DeadlineExceeded(f"no answer to command {command.opcode:#04x} in {timeout_s} s"))
            raise DeadlineExceeded(f"the controller did not answer in {timeout_s} s") from error
        except OSError as error:
            self.close(error)
            raise ConnectionLost(f"sending to the controller failed: {error}") from error
        if not pending.intact:
            raise ConnectionLost("data from the controller arrived damaged (data digest)")
        return completion, pending.whole or bytes(pending.parts)

    def close(self, failure: Exception | None = None) -> None:
        """End the connection; commands in flight fail with ConnectionLost."""
        if self.failure is not None:
            return
        self.failure = failure or ConnectionLost("closed by this host")
        if self._receiver is not None:
            self._receiver.cancel()
        with contextlib.suppress(OSError):
            if self._writer.transport.get_write_buffer_size():
                # What was not sent must not reach the controller after its command has failed here, and a controller
                # that does not read would hold up the close for ever.
                self._writer.transport.abort()
            else:
                self._writer.close()
        for pending in self._pending.values():
            self._slots.release()
            if not pending.answered.done():
                lost = ConnectionLost(f"the connection to the controller ended: {self.failure}")
                lost.__cause__ = self.failure
                pending.answered.set_exception(lost)
                pending.answered.exception()
        self._pending.clear()
        if self.on_end is not None:
            self.on_end(self.failure)

    async def wait_closed(self) -> None:
        """Return when the receiver is gone."""
        if self._receiver is not None:
            await asyncio.gather(self._receiver, return_exceptions=True)
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def _take_cid(self) -> int:
        while self._next_cid in self._pending:
            self._next_cid = (self._next_cid + 1) & 0xFFFF
        cid = self._next_cid
        self._next_cid = (cid + 1) & 0xFFFF
        return cid

    def _send_command(self, command: Command, data: Buffer) -> None:
        in_capsule = command.sgl_type == SGL_IN_CAPSULE
        capsule = pdus.encode(
            PduType.CAPSULE_CMD, command.pack(), data if in_capsule else b"",
            digests=self._digests, alignment=self._alignment,
        )  # fmt: skip
        self._writer.writelines(capsule)

    async def _receive(self) -> None:
        try:
            while True:
                # Never wait for the writer here: a controller that waits for us to read would wait for ever.
                self._dispatch(await pdus.read_pdu(self._reader, _FROM_CONTROLLER, self._digests))
        except ProtocolError as error:
            log.warning("controller broke the protocol: %s", error)
            self._writer.write(pdus.encode_termination(PduType.H2C_TERM_REQ, error))
            self.close(error)
        except asyncio.IncompleteReadError as error:
            lost = ConnectionLost("the controller closed the connection")
            lost.__cause__ = error
            self.close(lost)
        except (OSError, ConnectionLost) as error:
            self.close(error)
        except Exception as error:  # a defect: whoever waits for an answer must hear that none comes
            FAILURES.counts["nvme-tcp-queue"] += 1
            log.exception("reading from the controller failed")
            self.close(error)

    def _dispatch(self, pdu: Pdu) -> None:
        if pdu.type is PduType.CAPSULE_RESP:
            self._complete(Completion.unpack(pdu.header, len(pdu.header) - CQE_BYTES), pdu)
        elif pdu.type is PduType.C2H_DATA:
            self._take_data(Transfer.unpack(pdu.header), pdu)
        elif pdu.type is PduType.R2T:
            self._send_data(Transfer.unpack(pdu.header), pdu)
        else:
            raise ConnectionLost(f"the controller ended the connection: {pdus.describe_termination(pdu)}")

    def _find(self, cid: int, pdu: Pdu) -> _Pending:
        pending = self._pending.get(cid)
        if pending is None:
            raise ProtocolError(FatalError.SEQUENCE, f"{pdu.type.name} for unknown command {cid}", 8, pdu.header)
        return pending

    def _complete(self, completion: Completion, pdu: Pdu) -> None:
        pending = self._find(completion.cid, pdu)
        # Identifier and slot come free only here: a caller that gave up leaves a command behind that still runs.
        del self._pending[completion.cid]
        self._slots.release()
        if not pending.answered.done():
            pending.answered.set_result(completion)

    def _take_data(self, part: Transfer, pdu: Pdu) -> None:
        pending = self._find(part.cid, pdu)
        have = len(pending.whole) or len(pending.parts)
        if part.offset != have or part.length != len(pdu.data) or have + part.length > pending.incoming:
            raise ProtocolError(FatalError.OUT_OF_RANGE, f"data for command {part.cid} out of range", 12, pdu.header)
        pending.intact &= pdu.data_intact
        if have == 0:
            pending.whole = pdu.data
        else:
            pending.parts += pending.whole + pdu.data
            pending.whole = b""
        if pdu.flags & PduFlag.SUCCESS:
            if not pdu.flags & PduFlag.LAST:
                raise ProtocolError(FatalError.INVALID_HEADER, "SUCCESS without LAST", 1, pdu.header)
            self._complete(Completion(cid=part.cid), pdu)

    def _send_data(self, wanted: Transfer, pdu: Pdu) -> None:
        pending = self._find(wanted.cid, pdu)
        end = wanted.offset + wanted.length
        pending.asked += wanted.length  # each byte may be asked for once, or the buffer to the controller has no bound
        if wanted.length == 0 or max(end, pending.asked) > len(pending.outgoing):
            raise ProtocolError(FatalError.OUT_OF_RANGE, f"R2T for command {wanted.cid} out of range", 12, pdu.header)
        data = memoryview(pending.outgoing)
        for offset in range(wanted.offset, end, self._max_h2c):
            part = data[offset : min(offset + self._max_h2c, end)]
            flags = PduFlag.LAST if offset + len(part) == end else PduFlag.NONE
            specific = Transfer(wanted.cid, wanted.tag, offset, len(part)).pack()
            buffers = pdus.encode(
                PduType.H2C_DATA, specific, part, flags=flags, digests=self._digests, alignment=self._alignment
            )
            self._writer.writelines(buffers)


async def open_queue(address: str, port: int, depth: int, digests: Digests, timeout_s: float) -> Queue:
    """Connect to a controller's port and initialize the connection; raises Unavailable naming address and port."""
    where = f"{address}:{port}"
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(address, port, limit=1 << 20)
            queue = Queue(reader, writer, depth)
            await queue.initialize(digests)
    except (OSError, TimeoutError, asyncio.IncompleteReadError, ProtocolError, ConnectionLost) as error:
        if writer is not None:
            writer.close()
        reason = f"no answer in {timeout_s} s" if isinstance(error, TimeoutError) else str(error)
        raise Unavailable(f"cannot connect to NVMe/TCP at {where}: {reason}") from error
    except asyncio.CancelledError:
        if writer is not None:
            writer.close()
        raise
    return queue
