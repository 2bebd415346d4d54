"""One reader's view of the changes: a bounded buffer that never makes a writer wait."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from agent.store.change import Change
from agent.store.interface import Event, EventType
from agent.store.limits import BUFFER_EVENTS


class Watcher(AsyncIterator[Event[Any]]):
    """Yields events in order. When the buffer overflows it is replaced by a single RELIST. Ends with the store."""

    def __init__(self, kind: str, buffer: int = BUFFER_EVENTS) -> None:
        self.kind = kind
        self._buffer = buffer
        self._events: deque[Event[Any]] = deque()
        self._ready = asyncio.Event()
        self._ended = False

    def offer(self, change: Change) -> None:
        if change.kind != self.kind:
            return
        if len(self._events) >= self._buffer:
            self.relist(change.version)
            return
        self._events.append(Event(change.type, change.version, change.resource))
        self._ready.set()

    def relist(self, version: int) -> None:
        """Tells the reader to list again: a list taken from now on holds everything up to `version`."""
        self._events.clear()
        self._events.append(Event(EventType.RELIST, version, None))
        self._ready.set()

    def end(self) -> None:
        self._ended = True
        self._ready.set()

    async def __anext__(self) -> Event[Any]:
        while not self._events:
            if self._ended:
                raise StopAsyncIteration
            self._ready.clear()
            await self._ready.wait()
        return self._events.popleft()
