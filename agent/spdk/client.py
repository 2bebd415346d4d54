"""The JSON-RPC client of an SPDK target: one UNIX connection shared by all callers, made again when it breaks."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from agent.errors import (
    DeadlineExceeded,
    InvalidArgument,
    QuarryError,
    RpcError,
    TransportClosed,
    Unavailable,
    shorten,
)
from agent.sizes import SOCKET_PATH_MAX_BYTES
from agent.spdk.connection import Connection
from agent.tally import Tally
from agent.tasks.background import Background

log = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 256 * 1024 - 1
"""A longer request makes the target hang up: SPDK_JSONRPC_RECV_BUF_SIZE, lib/jsonrpc/jsonrpc_internal.h."""


class Rpc(Protocol):
    """What the typed calls need: one JSON-RPC call."""

    async def call(
        self, method: str, params: Mapping[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> Any:
        """The answer's result. Raises RpcError, TransportClosed, DeadlineExceeded."""
        ...


class Client:
    """Pipelined JSON-RPC over one UNIX socket, for any number of callers of one event loop.

    Calls made in one turn of the loop are written together. While there is no connection a call raises
    TransportClosed at once; connecting goes on in the background, with backoff and jitter, until `close`.
    """

    def __init__(
        self,
        socket_path: Path,
        *,
        call_timeout_s: float = 10.0,
        reconnect_min_s: float = 0.05,
        reconnect_max_s: float = 2.0,
    ) -> None:
        if len(bytes(socket_path)) > SOCKET_PATH_MAX_BYTES:
            raise InvalidArgument(
                "socket path",
                f"{shorten(str(socket_path))!r} is too long",
                f"use at most {SOCKET_PATH_MAX_BYTES} bytes",
            )
        self.socket_path = socket_path
        self.calls: Counter[str] = Counter()
        """Calls sent, by method."""
        self.durations = Tally()
        """Of calls that ended, also in an error, by method."""
        self.errors: Counter[tuple[str, str]] = Counter()
        """By method and what it was: SPDK's code, `timeout` or `connection`."""
        self.generation = 0
        """Grows with every established connection: state read under another generation may be gone."""
        self._call_timeout_s = call_timeout_s
        self._reconnect_min_s = reconnect_min_s
        self._reconnect_max_s = reconnect_max_s
        self._connection: Connection | None = None
        self._last_id = 0
        self._encoder = msgspec.json.Encoder()
        self._listeners: list[Callable[[bool], None]] = []
        self._up = asyncio.Event()
        self._down = asyncio.Event()
        self._background = Background(pause_s=reconnect_min_s, pause_max_s=reconnect_max_s)
        self._started = False
        self._closed = False
        self._trouble: OSError | None = None

    # --- life ---

    async def start(self) -> None:
        """Begin connecting in the background. Returns at once; `wait_connected` waits."""
        if self._closed:
            raise TransportClosed(f"the client of {self.socket_path} is closed")
        if not self._started:
            self._started = True
            self._background.keep("spdk-client", self._keep_connected)

    async def close(self) -> None:
        """End the connection and all waiting calls (TransportClosed). Idempotent."""
        self._closed = True
        await self._background.stop()
        if self._connection is not None:
            self._connection.close("this client was closed")

    async def __aenter__(self) -> Client:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    @property
    def connected(self) -> bool:
        return self._connection is not None

    @property
    def peer_pid(self) -> int | None:
        """Process id at the other end (SO_PEERCRED), None while not connected."""
        return self._connection.peer_pid if self._connection else None

    async def wait_connected(self, timeout_s: float) -> None:
        """Return when there is a connection. Unavailable after `timeout_s`, naming the socket and the likely cause."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._up.wait()
        except TimeoutError:
            raise Unavailable(
                f"no connection to {self.socket_path} within {timeout_s:g} s: {_likely_cause(self._trouble)}"
            ) from self._trouble

    def on_change(self, listener: Callable[[bool], None]) -> Callable[[], None]:
        """Call `listener` with True when connected, False when lost; returns the function that ends it."""
        self._listeners.append(listener)

        def unsubscribe() -> None:
            with contextlib.suppress(ValueError):
                self._listeners.remove(listener)

        return unsubscribe

    # --- calls ---

    async def call(
        self, method: str, params: Mapping[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> Any:
        """Call `method`, return the result of its answer.

        `timeout_s` defaults to the client's. Raises RpcError (the target's answer is an error), TransportClosed (no
        connection, or lost before the answer), DeadlineExceeded (the call may still be carried out; its late answer is
        dropped), InvalidArgument (`params` cannot be sent). `params` is never changed.
        """
        connection = self._connection
        if connection is None:
            raise TransportClosed(f"{method}: not connected to {self.socket_path}: {_likely_cause(self._trouble)}")
        self._last_id += 1
        request = self._encode(self._last_id, method, params)
        self.calls[method] += 1
        wait_s = self._call_timeout_s if timeout_s is None else timeout_s
        started = time.monotonic()
        try:
            return await connection.call(self._last_id, request, method, params or {}, wait_s)
        except QuarryError as error:
            self.errors[method, _kind(error)] += 1
            raise
        finally:
            self.durations.add((method,), time.monotonic() - started)

    def _encode(self, ident: int, method: str, params: Mapping[str, Any] | None) -> bytes:
        envelope: dict[str, Any] = {"jsonrpc": "2.0", "id": ident, "method": method}
        if params:  # several SPDK methods refuse any params, also an empty object
            envelope["params"] = params
        try:
            request = self._encoder.encode(envelope)
        except (TypeError, ValueError, OverflowError) as error:  # ValueError: also a lone surrogate
            raise InvalidArgument(f"{method} params", f"cannot be written as JSON: {error}") from error
        if len(request) > MAX_REQUEST_BYTES:
            raise InvalidArgument(
                f"{method} params", f"{len(request)} bytes of JSON", f"SPDK reads at most {MAX_REQUEST_BYTES}"
            )
        return request

    # --- connecting ---

    async def _keep_connected(self) -> None:
        delay_s = self._reconnect_min_s
        while True:
            connection = await self._connect()
            if connection is not None:
                await self._down.wait()
                if connection.answered:  # a peer that accepts and hangs up is approached as carefully as none
                    delay_s = self._reconnect_min_s
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
            delay_s = min(delay_s * 2, self._reconnect_max_s)

    async def _connect(self) -> Connection | None:
        self._down.clear()
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_unix_connection(lambda: Connection(self._lost), str(self.socket_path))
        except OSError as error:
            if self._trouble is None or self._trouble.errno != error.errno:
                log.info("cannot connect to the target", extra={"socket": str(self.socket_path), "error": str(error)})
            self._trouble = error
            return None
        if self._down.is_set():  # lost before this task ran again
            return connection
        self._trouble = None
        self._connection = connection
        self.generation += 1
        self._up.set()
        log.info("connected to the target", extra={"socket": str(self.socket_path), "pid": connection.peer_pid})
        self._tell(True)
        return connection

    def _lost(self, connection: Connection, reason: str) -> None:
        self._down.set()
        if self._connection is not connection:
            return
        self._connection = None
        self._up.clear()
        log.info("lost the target", extra={"socket": str(self.socket_path), "reason": reason})
        self._tell(False)

    def _tell(self, connected: bool) -> None:
        """Listeners run from the loop, so that none of them can disturb the connection."""
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            loop.call_soon(listener, connected)


def _kind(error: QuarryError) -> str:
    if isinstance(error, RpcError):
        return str(error.code)
    return "timeout" if isinstance(error, DeadlineExceeded) else "connection"


def _likely_cause(trouble: OSError | None) -> str:
    if trouble is None:
        return "connecting has not been tried or the connection was just lost"
    causes = {
        errno.ENOENT: "the socket does not exist; is the target running, with this path as its RPC socket?",
        errno.ECONNREFUSED: "nobody listens on the socket; the target that made it has ended",
        errno.EACCES: "permission denied; the target's socket usually belongs to root",
        errno.ENOTSOCK: "the path is not a socket",
    }
    return causes.get(trouble.errno or 0, str(trouble))
