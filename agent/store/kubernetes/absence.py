"""An API server that cannot be reached: who may try it again, and when."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

_PAUSE_S, _PAUSE_MAX_S = 0.05, 2.0


class Absence:
    """Shared by all requests of a connection: while the server is away one of them tries, less and less often.

    However many callers there are, a server that comes back is not met by all of them at once, nor asked by each.
    """

    def __init__(self) -> None:
        self._is_there = asyncio.Event()
        self._is_there.set()
        self._pause_s = _PAUSE_S
        self._next_try = 0.0
        """On the loop's clock."""
        self.why: Exception | None = None
        """None while the server is there."""

    def begin(self, why: Exception) -> None:
        """The server was not reached, or hung up."""
        self.why = why
        if self._is_there.is_set():
            self._is_there.clear()
            self._pause_s = _PAUSE_S
            self._defer()

    def end(self) -> None:
        """It has answered: everybody may ask."""
        self.why = None
        self._is_there.set()

    async def wait(self) -> None:
        """Until the server is there, or it is this request's turn to try."""
        while not self._is_there.is_set():
            left_s = self._next_try - asyncio.get_running_loop().time()
            if left_s <= 0:
                self._pause_s = min(2 * self._pause_s, _PAUSE_MAX_S)
                self._defer()
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._is_there.wait()

    def _defer(self) -> None:
        pause_s = self._pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, keeps no secret
        self._next_try = asyncio.get_running_loop().time() + pause_s
