"""The gate between agent and target: every JSON-RPC call passes it alone, and at the n-th the agent can be killed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from agent.spdk.framing import MessageSplitter

from .tripwire import Phase

UNCOUNTED = frozenset({"spdk_get_version"})
"""The heartbeat: it comes when it comes and changes nothing."""

DRAIN_S = 30.0


@dataclass
class _Passage:
    """One connection of an agent: what it asked for and was not answered yet."""

    to_target: asyncio.StreamWriter
    unanswered: set[int] = field(default_factory=set)
    all_answered: asyncio.Event = field(default_factory=asyncio.Event)


class Gate:
    """Calls of one write are told apart: before the n-th is passed on those in front of it have been, so the target
    carries them out. A killed agent's connection to the target is kept until all it asked for is answered."""

    def __init__(self, target: Path, path: Path, kill: Callable[[], Awaitable[None]]) -> None:
        self.path = path
        self.passed: list[str] = []
        self._target = target
        self._kill = kill
        self._armed = False
        self._fatal = 0
        self._phase = Phase.BEFORE
        self._fatal_id: int | None = None
        self._passages: set[asyncio.Task[None]] = set()

    def arm(self, fatal: int = 0, phase: Phase = Phase.BEFORE) -> None:
        """As `Tripwire.arm`."""
        self.passed, self._armed, self._fatal, self._phase, self._fatal_id = [], True, fatal, phase, None

    def disarm(self) -> None:
        self._armed = False

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        self.path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._serve, self.path)
        try:
            yield
        finally:
            server.close()
            for task in self._passages:
                task.cancel()
            await asyncio.gather(*self._passages, return_exceptions=True)

    async def drained(self) -> None:
        """Return when all that killed agents asked for has been carried out."""
        if self._passages:
            await asyncio.wait(self._passages, timeout=DRAIN_S)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._passages.add(task)
        try:
            from_target, to_target = await asyncio.open_unix_connection(self._target, limit=1 << 26)
            passage = _Passage(to_target)
            back = asyncio.create_task(self._back(passage, from_target, writer))
            try:
                await self._forth(passage, reader)
                if passage.unanswered:
                    async with asyncio.timeout(DRAIN_S):
                        await passage.all_answered.wait()
            finally:
                back.cancel()
                to_target.close()
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # the target is away, which the agent hears from the end of its connection, or the test has ended
        finally:
            self._passages.discard(task)
            writer.close()

    async def _forth(self, passage: _Passage, reader: asyncio.StreamReader) -> None:
        splitter = MessageSplitter()
        while data := await _read(reader):
            for message in splitter.feed(data):
                call = json.loads(message)
                is_fatal = self._counts(call["method"])
                if is_fatal and self._phase is Phase.BEFORE:
                    return await self._kill()
                passage.unanswered.add(call["id"])
                passage.all_answered.clear()
                if is_fatal:
                    self._fatal_id = call["id"]
                passage.to_target.write(message)
                if is_fatal:
                    return await self._wait_closed(reader)
        return None

    def _counts(self, method: str) -> bool:
        """Whether a call of `method` is the fatal one."""
        if not self._armed or method in UNCOUNTED:
            return False
        self.passed.append(method)
        return len(self.passed) == self._fatal

    @staticmethod
    async def _wait_closed(reader: asyncio.StreamReader) -> None:
        """Nothing more passes; the agent is killed when the answer comes."""
        while await _read(reader):
            pass

    async def _back(self, passage: _Passage, from_target: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        splitter = MessageSplitter()
        while data := await _read(from_target):
            for message in splitter.feed(data):
                ident = json.loads(message).get("id")
                if ident == self._fatal_id and self._armed and self._phase is Phase.AFTER:
                    self._fatal_id = None
                    await self._kill()
                passage.unanswered.discard(ident)
                if not passage.unanswered:
                    passage.all_answered.set()
                with suppress(OSError):
                    writer.write(message)
        writer.close()
        passage.all_answered.set()


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(1 << 16)
    except OSError:
        return b""
