"""One child process in the event loop: started without anybody's fork handlers, its pipes and its end awaited.

`subprocess` starts it by vfork: nothing of ours runs in the child. Event loops have their own ways, and uvloop's forks
and runs all fork handlers, gRPC's among them: measured with calls in flight, within 50 children one crashed, or never
became its program (which holds up our loop for ever), or took our connections with it.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Mapping, Sequence

PIPE = subprocess.PIPE
DEVNULL = subprocess.DEVNULL
STDOUT = subprocess.STDOUT


class Child:
    """It is reaped when it ends, whoever waits. `close` lets go of the pipes, which descendants may hold open."""

    def __init__(
        self, argv: Sequence[str], environment: Mapping[str, str], stdin: int, stdout: int, stderr: int
    ) -> None:
        """Raises OSError when it cannot be started."""
        self._popen = subprocess.Popen(
            argv, bufsize=0, stdin=stdin, stdout=stdout, stderr=stderr, env=environment, start_new_session=True
        )
        self.pid = self._popen.pid
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None
        self._transports: list[asyncio.BaseTransport] = []
        loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = loop.create_future()
        try:
            self._end = os.pidfd_open(self.pid)
        except OSError:
            self._popen.kill()
            self._popen.wait()
            raise
        loop.add_reader(self._end, self._reap)

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative: killed by that signal."""
        return self._popen.returncode

    async def connect(self, data: bytes | None) -> None:
        """Follow its pipes; `data` is all that it gets to read."""
        if self._popen.stdin is not None:
            transport, _ = await asyncio.get_running_loop().connect_write_pipe(asyncio.BaseProtocol, self._popen.stdin)
            self._transports.append(transport)
            transport.write(data or b"")
            transport.close()  # once all is written; it may end without reading all: its exit code tells
        self.stdout = await self._reader(self._popen.stdout)
        self.stderr = await self._reader(self._popen.stderr)

    async def wait(self) -> int:
        """The exit code. May be cancelled and repeated."""
        return await asyncio.shield(self._ended)

    def close(self) -> None:
        for transport in self._transports:
            transport.close()

    async def _reader(self, pipe: object) -> asyncio.StreamReader | None:
        if pipe is None:
            return None
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        self._transports.append(transport)
        return reader

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._end)
        os.close(self._end)
        self._ended.set_result(self._popen.wait())
