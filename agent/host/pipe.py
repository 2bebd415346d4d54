"""Pipes from children to us, followed by the event loop without anything to wait for, so that nothing can be cut off.

Not the loop's own pipe transports: those are made in a coroutine, and one that is cancelled in it leaves a transport
that nobody knows. uvloop then takes the next pipe with the same descriptor for that one (EEXIST).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

CHUNK_BYTES = 64 << 10


class Pipe:
    """`write_end` is for a child; each chunk it writes goes to `take`, and `ended` is set once nobody can write."""

    def __init__(self, take: Callable[[bytes], object]) -> None:
        """Raises OSError when there are no descriptors left."""
        self._loop = asyncio.get_running_loop()
        self._take = take
        self._read_end, self.write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(self._read_end, self._read)

    def close_write_end(self) -> None:
        """When the child has it, or never will. As often as wanted."""
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def close(self) -> None:
        """Let go of both ends, whatever the children of the child still write. As often as wanted."""
        self.close_write_end()
        if self._read_end >= 0:
            self._loop.remove_reader(self._read_end)
            os.close(self._read_end)
            self._read_end = -1
        if not self.ended.done():
            self.ended.set_result(None)

    def _read(self) -> None:
        try:
            chunk = os.read(self._read_end, CHUNK_BYTES)
        except BlockingIOError:
            return
        if chunk:
            self._take(chunk)
        else:
            self.close()
