"""One child process in the event loop: started without anybody's fork handlers, its end awaited.

`subprocess` starts it by vfork: nothing of ours runs in the child. Event loops have their own ways, and uvloop's forks
and runs all fork handlers, gRPC's among them: measured with calls in flight, within 50 children one crashed, or never
became its program (which holds up our loop for ever), or took our connections with it.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Mapping, Sequence


class Child:
    """It is reaped when it ends, whoever waits."""

    def __init__(
        self, argv: Sequence[str], environment: Mapping[str, str], input: bytes | None, stdout: int, stderr: int
    ) -> None:
        """`input` is all that it gets to read; its output goes to the two descriptors.

        Raises OSError when it cannot be started.
        """
        stdin = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) if input is None else _holding(input)
        try:
            self._popen = subprocess.Popen(
                argv, stdin=stdin, stdout=stdout, stderr=stderr, env=environment, start_new_session=True
            )
        finally:
            os.close(stdin)
        self.pid = self._popen.pid
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

    async def wait(self) -> int:
        """The exit code. May be cancelled and repeated."""
        return await asyncio.shield(self._ended)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._end)
        os.close(self._end)
        self._ended.set_result(self._popen.wait())


def _holding(data: bytes) -> int:
    """A file in memory with `data`, to be read from its beginning."""
    descriptor = os.memfd_create("input", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(descriptor, 0, os.SEEK_SET)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
