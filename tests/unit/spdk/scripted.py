"""A JSON-RPC server on a real UNIX socket that does what the test tells it, byte by byte."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any


class Peer:
    """The server's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.reads: list[int] = []
        """Number of requests that arrived with each read."""
        self._decoder = json.JSONDecoder()
        self._text = ""

    async def request(self) -> dict[str, Any]:
        """The next request; EOFError when the client hung up."""
        while not self._text:
            data = await self.reader.read(1 << 20)
            if not data:
                raise EOFError
            self._text += data.decode()
            self.reads.append(data.count(b'"jsonrpc"'))
        value, end = self._decoder.raw_decode(self._text)
        self._text = self._text[end:]
        assert isinstance(value, dict)
        return value

    async def send(self, data: bytes, piece: int | None = None) -> None:
        """Send `data`; with `piece`, in pieces of so many bytes that arrive one by one."""
        for start in range(0, len(data), piece or len(data)):
            self.writer.write(data[start : start + (piece or len(data))])
            await self.writer.drain()
            if piece:
                await asyncio.sleep(0)  # lets the client's loop read this piece alone

    async def answer(self, request: dict[str, Any], result: Any, piece: int | None = None) -> None:
        await self.send(answer(request, result), piece)

    async def closed(self) -> None:
        """Return when the client has hung up."""
        while await self.reader.read(1 << 20):
            pass


def answer(request: dict[str, Any], result: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}, ensure_ascii=False).encode()


def error(request: dict[str, Any], code: int, message: str) -> bytes:
    fault = {"code": code, "message": message}
    return json.dumps({"jsonrpc": "2.0", "id": request["id"], "error": fault}).encode()


Script = Callable[[Peer], Awaitable[None]]


class ScriptedServer:
    """Runs `script` for each connection; the n-th connection gets the n-th script, the last one repeats."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.connections = 0
        self.failures: list[BaseException] = []
        self.directory = Path(tempfile.mkdtemp(prefix="qs-"))
        self.path = self.directory / "rpc.sock"
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> ScriptedServer:
        self._server = await asyncio.start_unix_server(self._serve, str(self.path))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()
        shutil.rmtree(self.directory)
        if self.failures:
            raise self.failures[0]

    async def stop(self) -> None:
        """Stop listening and cut all connections, as a killed target does."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.path.unlink(missing_ok=True)

    async def restart(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, str(self.path))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        script = self.scripts[min(self.connections, len(self.scripts) - 1)]
        self.connections += 1
        try:
            await script(Peer(reader, writer))
        except (EOFError, ConnectionError, asyncio.CancelledError):
            pass
        except AssertionError as failure:
            self.failures.append(failure)
        finally:
            self._tasks.discard(task)
            writer.close()


async def echo(peer: Peer) -> None:
    """Answers every call with its params."""
    while True:
        request = await peer.request()
        await peer.answer(request, request.get("params"))
