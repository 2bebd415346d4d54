"""Holds writes back while something is copied as it is at one point in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class WriteGate:
    """Many writers pass at once; `closed` waits for those inside and keeps others out."""

    def __init__(self) -> None:
        self._writers = 0
        self._open = asyncio.Event()
        self._open.set()
        self._empty = asyncio.Event()
        self._empty.set()

    async def enter(self) -> None:
        """Wait until the gate is open; call `leave` afterwards."""
        while not self._open.is_set():
            await self._open.wait()
        self._writers += 1
        self._empty.clear()

    def leave(self) -> None:
        self._writers -= 1
        if self._writers == 0:
            self._empty.set()

    @asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        """Not reentrant: the caller serialises."""
        self._open.clear()
        try:
            await self._empty.wait()
            yield
        finally:
            self._open.set()
