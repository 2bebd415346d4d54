"""The JSON-RPC server of the embedded target: a UNIX socket that behaves like SPDK's lib/jsonrpc and lib/rpc.

Observed on SPDK v26.05: requests need no `jsonrpc` member; one without `id` gets no result but still gets its error;
unknown members, duplicate use of other types and non-object values are -32600 with `id` null; an array is a batch;
anything that is not JSON closes the connection without an answer; a request is executed when it is read, so
calls that need no waiting are answered in order and others when they are done.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from pathlib import Path
from typing import Any, cast

import msgspec

from agent.embedded.framing import Malformed, RequestStream
from agent.embedded.rpc import INTERNAL_ERROR, INVALID_REQUEST, Methods, RpcFault
from agent.errors import FailedPrecondition, InvalidArgument
from agent.sizes import SOCKET_PATH_MAX_BYTES
from agent.tasks import unix_socket

log = logging.getLogger(__name__)


_MEMBERS = frozenset({"jsonrpc", "method", "params", "id"})
_INVALID = RpcFault(INVALID_REQUEST, "Invalid request")


class FileLock:
    """An exclusive `flock` on a file, gone with the process; keeps two targets off one socket or directory."""

    def __init__(self, path: Path, subject: str) -> None:
        """Raises FailedPrecondition when another process holds it; `subject` says what is locked."""
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._fd)
            raise FailedPrecondition(f"{subject} is in use by another target (lock {path})") from error

    def release(self) -> None:
        os.close(self._fd)


class _Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, server: JsonRpcServer) -> None:
        self._server = server
        self._stream = RequestStream()
        self._transport: asyncio.Transport | None = None
        self._outstanding = 0
        self._eof = False
        self._output: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._server.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        try:
            for value in self._stream.feed(data):
                self._start(value)
        except Malformed as error:
            log.info("closing a connection that does not speak JSON-RPC: %s", error)
            self.abort()

    def eof_received(self) -> bool:
        self._eof = True
        self._close_when_answered()
        return True

    def pause_writing(self) -> None:
        """The client does not read its answers: stop reading its requests."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def _start(self, value: Any) -> None:
        self._outstanding += 1
        if isinstance(value, list) and value:
            self._server.spawn(self._batch(value))
        else:
            self._server.spawn(self._single(value))

    async def _single(self, value: Any) -> None:
        response = await self._server.respond(value)
        self._finish(None if response is None else msgspec.json.encode(response))

    async def _batch(self, values: list[Any]) -> None:
        answers = await asyncio.gather(*(self._server.respond(value) for value in values))
        responses = [answer for answer in answers if answer is not None]
        self._finish(msgspec.json.encode(responses) if responses else None)

    def _finish(self, response: bytes | None) -> None:
        self._outstanding -= 1
        if response is not None and self._transport is not None:
            if not self._output:
                asyncio.get_running_loop().call_soon(self._flush)
            self._output.append(response + b"\n")
        self._close_when_answered()

    def _flush(self) -> None:
        """Everything answered in one turn of the event loop goes out in one write."""
        if self._transport is not None and self._output:
            self._transport.write(b"".join(self._output))
        self._output.clear()

    def _close_when_answered(self) -> None:
        if self._eof and self._outstanding == 0 and self._transport is not None:
            self._flush()
            self._transport.close()


class JsonRpcServer:
    """Serves `methods` on a UNIX socket."""

    def __init__(self, methods: Methods, path: Path) -> None:
        self._methods = methods
        self._path = path
        self._lock: FileLock | None = None
        self._server: asyncio.Server | None = None
        self._inode = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections: set[_Connection] = set()

    async def start(self) -> None:
        """Bind the socket, replacing one that a dead target left. Raises FailedPrecondition when a target serves it."""
        if len(os.fsencode(self._path)) > SOCKET_PATH_MAX_BYTES:
            remedy = f"a UNIX socket path has at most {SOCKET_PATH_MAX_BYTES} bytes: choose a shorter one"
            raise InvalidArgument("rpc-socket", "path too long", remedy)
        await unix_socket.make_room(self._path, "another --rpc-socket")  # before a lock file is made beside it
        self._lock = FileLock(self._path.with_name(self._path.name + ".lock"), f"RPC socket {self._path}")
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: _Connection(self), str(self._path), backlog=512
        )
        self._path.chmod(0o600)
        self._inode = self._path.lstat().st_ino

    async def stop(self) -> None:
        """Close the socket and every connection; calls still running are cancelled."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self.connections):
            connection.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._lock is not None:
            unix_socket.remove(self._path, self._inode)
            self._lock.release()
            self._lock = None

    def spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def respond(self, value: Any) -> dict[str, Any] | None:
        """The answer to one request, None for a successful one without `id`."""
        if not _is_request(value):
            return _failure(None, _INVALID)
        identity, params = value.get("id"), value.get("params")
        if params is not None and not isinstance(params, dict | list):
            return _failure(identity, _INVALID)
        try:
            result = await self._methods.call(value["method"], params)
        except RpcFault as fault:
            return _failure(identity, fault)
        except Exception as error:  # outermost: one failing call must not take the target down
            log.exception("method %s failed", value["method"])
            return _failure(identity, RpcFault(INTERNAL_ERROR, f"Internal error: {error}"))
        return None if identity is None else {"jsonrpc": "2.0", "id": identity, "result": result}


def _failure(identity: Any, fault: RpcFault) -> dict[str, Any]:
    error = {"code": fault.code, "message": fault.message}
    return {"jsonrpc": "2.0", "id": identity, "error": error}


def _is_request(value: Any) -> bool:
    if not isinstance(value, dict) or not _MEMBERS.issuperset(value):
        return False
    identity = value.get("id")
    return (
        value.get("jsonrpc", "2.0") == "2.0"
        and isinstance(value.get("method"), str)
        and (identity is None or (isinstance(identity, str | int | float) and not isinstance(identity, bool)))
    )
