"""Stands between agent and target: before a call of some method is passed on, something else happens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from agent.spdk.framing import MessageSplitter


class Between:
    """`before` has what is to be done once, in a thread, before the first call of a method; `passed` all calls."""

    def __init__(self, target: Path, path: Path) -> None:
        self.socket_path = path
        self.before: dict[str, Callable[[], object]] = {}
        self.passed: list[str] = []
        self.unknown: set[str] = set()
        """Methods that the target does not have."""
        self.stops_at = ""
        """A method that is not passed on: the connection ends there."""
        self._target = target
        self._done = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def until_done(self) -> None:
        """Return when something of `before` has been done."""
        await asyncio.wait_for(self._done.wait(), 20)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Between]:
        server = await asyncio.start_unix_server(self._serve, self.socket_path)
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with suppress(OSError, asyncio.CancelledError):
            from_target, to_target = await asyncio.open_unix_connection(self._target, limit=1 << 26)
            back = asyncio.create_task(self._back(from_target, writer))
            splitter = MessageSplitter()
            while data := await reader.read(1 << 16):
                for message in splitter.feed(data):
                    call = json.loads(message)
                    method = call["method"]
                    self.passed.append(method)
                    if method in self.before:
                        await asyncio.to_thread(self.before.pop(method))
                        self._done.set()
                    if method == self.stops_at:
                        return
                    if method in self.unknown:
                        error = {"code": -32601, "message": "Method not found"}
                        writer.write(json.dumps({"jsonrpc": "2.0", "id": call["id"], "error": error}).encode())
                        continue
                    to_target.write(message)
            back.cancel()
            to_target.close()
        self._tasks.discard(task)

    async def _back(self, from_target: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await from_target.read(1 << 16):
            writer.write(data)
        writer.close()
