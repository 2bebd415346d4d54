"""NVMe/TCP on the target's side: listening ports, and one connection that carries one queue."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import Protocol

from agent.embedded.nvmf.controller import Controller
from agent.embedded.nvmf.request import Refusal, Reply, Request
from agent.embedded.nvmf.settings import (
    ADMIN_CAPSULE_BYTES,
    TransportSettings,
)
from agent.embedded.nvmf.subsystem import Address
from agent.nvmf import pdu as pdus
from agent.nvmf.command import SGL_IN_CAPSULE, SGL_TRANSPORT, Command, Completion
from agent.nvmf.pdu import Digests, FatalError, Initialization, Pdu, PduFlag, PduType, ProtocolError, Transfer
from agent.nvmf.status import Status

log = logging.getLogger(__name__)

_LINGER_S = 2.0
"""How long to wait for the host to close after a TermReq."""
_SGL_OFFSET, _SQE_OFFSET = 32, 8
_FROM_HOST_FIRST = {PduType.IC_REQ: 0}


class Executor(Protocol):
    """The target as a connection sees it."""

    @property
    def settings(self) -> TransportSettings: ...
    async def execute(self, connection: Connection, request: Request) -> Reply: ...


@dataclass(slots=True)
class _Inbound:
    """A command whose data the host sends after an R2T."""

    command: Command
    data: bytearray
    received: int = 0
    intact: bool = True


class Connection:
    """One TCP connection. `qid` and `controller` are set by Connect; before it one command at a time is taken."""

    def __init__(
        self, executor: Executor, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, local: Address
    ) -> None:
        self.qid = 0
        self.local = local
        host, port, *_ = writer.get_extra_info("peername") or ("", 0)
        self.peer = Address(local.family, host, str(port))
        self.controller: Controller | None = None
        self._executor = executor
        self._reader = reader
        self._writer = writer
        self._digests = Digests()
        self._alignment = 4
        self._queue_size = 1
        self._sq_head = 0
        self._outstanding = 0
        self._running: set[asyncio.Task[None]] = set()
        self._inbound: dict[int, _Inbound] = {}
        self._allowed = {PduType.CAPSULE_CMD: ADMIN_CAPSULE_BYTES, PduType.H2C_TERM_REQ: pdus.TERM_DATA_MAX}
        self._connected = asyncio.Event()
        self._finished = asyncio.Event()
        self._closed = False
        self._silent = False

    # --- life -----------------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Run until the host or the target ends the connection. Never raises because of the host."""
        watchdog = asyncio.get_running_loop().call_later(self._executor.settings.connect_timeout_s, self._watch)
        try:
            await self._initialize()
            while True:
                self._dispatch(await pdus.read_pdu(self._reader, self._allowed, self._digests))
                if self._writer.transport.get_write_buffer_size():
                    await self._writer.drain()
        except ProtocolError as error:
            log.warning("%s broke the protocol: %s", self.peer, error)
            await self._terminate(error)
        except (asyncio.IncompleteReadError, OSError):
            log.debug("%s closed its connection", self.peer)
        finally:
            watchdog.cancel()
            self.close("connection ended")
            if self.controller is not None:
                self.controller.queue_gone(self)
            await asyncio.gather(*self._running, return_exceptions=True)
            self._finished.set()
            if self.controller is not None:
                self.controller.queue_finished(self)

    def associate(self, controller: Controller, qid: int, queue_size: int) -> None:
        """Connect succeeded: from now on this is queue `qid` of `controller`."""
        self.controller = controller
        self.qid = qid
        self._queue_size = queue_size
        settings = controller.settings
        capsule = settings.in_capsule_data_size if qid else max(settings.in_capsule_data_size, ADMIN_CAPSULE_BYTES)
        self._allowed[PduType.CAPSULE_CMD] = capsule
        self._connected.set()
        controller.add_queue(self)

    def close(self, reason: str) -> None:
        """Cut the connection at once. I/O that reached its bdev ends there, but is not answered: see `finished`."""
        if self._closed:
            return
        self._closed = True
        if self.qid == 0:
            for task in self._running:
                task.cancel()
        self._inbound.clear()
        with contextlib.suppress(OSError):
            self._writer.transport.abort()

    async def finished(self) -> None:
        """Return when the connection is cut and nothing that came over it can touch a bdev any more."""
        await self._finished.wait()

    def _watch(self) -> None:
        if not self._connected.is_set():
            log.info("%s did not connect to a subsystem in time", self.peer)
            self.close("no Connect")

    async def _terminate(self, error: ProtocolError) -> None:
        """Send C2HTermReq and let the host close first, so that it can read why."""
        if self._closed:
            return
        self._silent = True  # nothing may follow the TermReq; I/O still runs to its end, half a mirror must not have it
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                self._writer.write(pdus.encode_termination(PduType.C2H_TERM_REQ, error))
                await self._writer.drain()
                while await self._reader.read(65536):
                    pass

    async def _initialize(self) -> None:
        pdu = await pdus.read_pdu(self._reader, _FROM_HOST_FIRST)
        request = Initialization.unpack(pdu.header)
        if request.version != 0 or request.alignment > 31:
            offset = 8 if request.version else 10
            raise ProtocolError(FatalError.INVALID_HEADER, f"unusable ICReq {request}", offset, pdu.header)
        self._digests = request.digests
        self._alignment = (request.alignment + 1) * 4
        limit = self._executor.settings.max_io_size
        self._allowed[PduType.H2C_DATA] = limit
        response = Initialization(digests=request.digests, limit=limit)
        self._writer.writelines(pdus.encode(PduType.IC_RESP, response.pack()))

    # --- from the host --------------------------------------------------------------------------------------------

    def _dispatch(self, pdu: Pdu) -> None:
        if self._closed:
            raise ConnectionResetError
        if pdu.type is PduType.CAPSULE_CMD:
            self._take_command(pdu)
        elif pdu.type is PduType.H2C_DATA:
            self._take_data(pdu)
        else:
            log.warning("%s ended the connection: %s", self.peer, pdus.describe_termination(pdu))
            raise ConnectionResetError

    def _take_command(self, pdu: Pdu) -> None:
        command = Command.unpack(pdu.header, pdus.COMMON_BYTES)
        if self._outstanding >= self._queue_size:
            raise ProtocolError(FatalError.SEQUENCE, "more commands than the queue holds", 0, pdu.header)
        self._outstanding += 1
        length = command.sgl_length if command.transfer else 0
        if command.sgl_type == SGL_IN_CAPSULE and command.transfer == 1:
            if command.sgl_address or length != len(pdu.data):
                raise ProtocolError(
                    FatalError.INVALID_HEADER, "in-capsule data is not where it should be", 4, pdu.header
                )
            self._start(Request(command, pdu.data, length), intact=pdu.data_intact)
        elif length == 0 and not pdu.data:
            self._start(Request(command))
        else:
            self._check_transport_sgl(command, length, pdu)
            if command.transfer == 1:
                self._ask_for_data(command, length)
            else:
                self._start(Request(command, length=length))

    def _check_transport_sgl(self, command: Command, length: int, pdu: Pdu) -> None:
        limit = self._executor.settings.max_io_size if self.controller else ADMIN_CAPSULE_BYTES
        offset = _SQE_OFFSET + _SGL_OFFSET
        if command.sgl_type != SGL_TRANSPORT or pdu.data or command.transfer == 3:
            raise ProtocolError(FatalError.UNSUPPORTED, f"SGL type {command.sgl_type:#x}", offset, pdu.header)
        if length > limit:
            raise ProtocolError(FatalError.LIMIT_EXCEEDED, f"transfer of {length} bytes", offset, pdu.header)

    def _ask_for_data(self, command: Command, length: int) -> None:
        tag = next(number for number in range(1, self._queue_size + 1) if number not in self._inbound)
        self._inbound[tag] = _Inbound(command, bytearray(length))
        wanted = Transfer(command.cid, tag, 0, length)
        self._writer.writelines(pdus.encode(PduType.R2T, wanted.pack(), digests=self._digests))

    def _take_data(self, pdu: Pdu) -> None:
        part = Transfer.unpack(pdu.header)
        inbound = self._inbound.get(part.tag)
        if inbound is None or inbound.command.cid != part.cid:
            offset = 10 if inbound is None else 8
            raise ProtocolError(FatalError.SEQUENCE, f"data for unknown transfer {part.tag}", offset, pdu.header)
        end = part.offset + part.length
        if part.offset != inbound.received or end > len(inbound.data) or part.length != len(pdu.data):
            raise ProtocolError(FatalError.OUT_OF_RANGE, f"data at {part.offset} length {part.length}", 12, pdu.header)
        inbound.data[part.offset : end] = pdu.data
        inbound.received = end
        inbound.intact &= pdu.data_intact
        if end == len(inbound.data):
            del self._inbound[part.tag]
            self._start(Request(inbound.command, inbound.data, end), intact=inbound.intact)
        elif pdu.flags & PduFlag.LAST or part.length == 0:
            raise ProtocolError(FatalError.INVALID_HEADER, "last data PDU before the end", 1, pdu.header)

    # --- to the host ----------------------------------------------------------------------------------------------

    def _start(self, request: Request, *, intact: bool = True) -> None:
        task = asyncio.create_task(self._run(request, intact))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, request: Request, intact: bool) -> None:
        cid = request.command.cid
        try:
            if not intact:
                raise Refusal(Status.TRANSIENT_TRANSPORT_ERROR)
            reply = await self._executor.execute(self, request)
        except Refusal as refusal:
            self._answer(Completion(refusal.status, refusal.result, refusal.dnr, cid))
        except Exception:
            log.exception("command %#x failed in the target", request.command.opcode)
            self._answer(Completion(Status.INTERNAL_ERROR, cid=cid))
        else:
            self._answer(Completion(result=reply.result, cid=cid), reply.data, request.length)
        with contextlib.suppress(OSError):
            await self._writer.drain()

    def _answer(self, completion: Completion, data: bytes = b"", length: int = 0) -> None:
        if self._closed or self._silent:
            return
        self._outstanding -= 1
        self._sq_head = (self._sq_head + 1) % max(self._queue_size, 2)
        completion.sq_head = self._sq_head
        if data and length:
            whole = data if len(data) == length else data[:length].ljust(length, b"\0")
            success = self._executor.settings.c2h_success and completion.result == 0
            flags = PduFlag.LAST | (PduFlag.SUCCESS if success else PduFlag.NONE)
            specific = Transfer(completion.cid, 0, 0, length).pack()
            self._writer.writelines(
                pdus.encode(
                    PduType.C2H_DATA, specific, whole,
                    flags=flags, digests=self._digests, alignment=self._alignment,
                )
            )  # fmt: skip
            if success:
                return
        self._writer.writelines(pdus.encode(PduType.CAPSULE_RESP, completion.pack(), digests=self._digests))
