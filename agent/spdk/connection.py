"""One established connection to a JSON-RPC socket: requests out, answers matched to their callers by id.

A connection lives once. When it breaks, or carries anything that is not an answer to a call of ours, every waiting
caller gets TransportClosed and the connection is over; `Client` makes the next one.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from agent.errors import DeadlineExceeded, RpcError, TransportClosed
from agent.spdk.framing import FramingError, MessageSplitter

_UCRED = struct.Struct("=iII")
"""struct ucred of SO_PEERCRED, unix(7): pid, uid, gid."""


class Fault(msgspec.Struct):
    """The error object of an answer (JSON-RPC 2.0, section 5.1)."""

    code: int
    message: str = ""


class Answer(msgspec.Struct):
    """An answer (JSON-RPC 2.0, section 5)."""

    id: int | None
    result: Any = None
    error: Fault | None = None


_decoder = msgspec.json.Decoder(Answer)


@dataclass(frozen=True, slots=True)
class _Waiting:
    method: str
    params: Mapping[str, Any]
    future: asyncio.Future[Any]


class Connection(asyncio.Protocol):
    """See module. Made by `Client`; `on_lost` is called once, with the reason, when the connection is over."""

    def __init__(self, on_lost: Callable[[Connection, str], None]) -> None:
        self.peer_pid: int | None = None
        self.answered = False
        """An answer came: the peer speaks JSON-RPC."""
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._splitter = MessageSplitter()
        self._waiting: dict[int, _Waiting] = {}
        self._newest_id = 0
        self._outbox: list[bytes] = []
        self._lost: str | None = None

    # --- calls ---

    async def call(self, ident: int, request: bytes, method: str, params: Mapping[str, Any], timeout_s: float) -> Any:
        """Send `request`, whose id is `ident`, and wait for its answer. Ids grow and are never reused."""
        if self._lost is not None or self._transport is None:
            raise TransportClosed(self._lost or "not connected")
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting[ident] = _Waiting(method, params, future)
        self._newest_id = ident
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(request)
        timer = self._loop.call_later(timeout_s, self._expire, ident, timeout_s)
        try:
            return await future
        finally:
            timer.cancel()
            self._waiting.pop(ident, None)

    def _flush(self) -> None:
        """Write everything that was asked for in this turn of the loop at once."""
        outbox, self._outbox = self._outbox, []
        if self._transport is not None and self._lost is None:
            self._transport.write(b"".join(outbox))

    def _expire(self, ident: int, timeout_s: float) -> None:
        waiting = self._waiting.pop(ident, None)
        if waiting is not None and not waiting.future.done():
            waiting.future.set_exception(
                DeadlineExceeded(
                    f"{waiting.method}: no answer within {timeout_s:g} s; it may still have been carried out"
                )
            )

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peer = self._transport.get_extra_info("socket")
        if peer is not None:
            credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            self.peer_pid = _UCRED.unpack(credentials)[0]

    def data_received(self, data: bytes) -> None:
        if self._lost is not None:
            return
        try:
            for message in self._splitter.feed(data):
                self._deliver(_decoder.decode(message))
        except (FramingError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.close(f"the peer sent something that is not a JSON-RPC answer: {error}")

    def eof_received(self) -> bool:
        cut = self._splitter.pending_bytes
        self.close("the peer closed the connection" + (f" after {cut} bytes of an unfinished answer" if cut else ""))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(f"the connection broke: {exc}" if exc else "the peer closed the connection")

    # --- answers ---

    def _deliver(self, answer: Answer) -> None:
        """Hand an answer to its caller. One to a caller who left (deadline, cancelled) is dropped."""
        if answer.id is None:
            text = answer.error.message if answer.error else "no error"
            raise FramingError(f"an answer without id ({text}): the peer could not read a request")
        if not 0 < answer.id <= self._newest_id:
            raise FramingError(f"an answer to id {answer.id}, which was never sent")
        self.answered = True
        waiting = self._waiting.pop(answer.id, None)
        if waiting is None or waiting.future.done():
            return
        if answer.error is None:
            waiting.future.set_result(answer.result)
        else:
            waiting.future.set_exception(
                RpcError(waiting.method, answer.error.code, answer.error.message, waiting.params)
            )

    def close(self, reason: str) -> None:
        """End the connection: every waiting call raises TransportClosed with `reason`. Idempotent."""
        if self._lost is not None:
            return
        self._lost = reason
        if self._transport is not None:
            self._transport.abort()
        waiting, self._waiting = self._waiting, {}
        for call in waiting.values():
            if not call.future.done():
                call.future.set_exception(TransportClosed(f"{call.method}: {reason}"))
        self._on_lost(self, reason)
