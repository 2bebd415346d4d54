"""Freezing a mounted filesystem for a moment, so that what is on its device is what an unmount would leave.

The freeze is held by a child (agent.host.freeze_holder) that, unlike any other program we start, outlives us: it thaws
when we die, hang, or take longer than allowed. If even the child is killed, whoever started it thaws here (`thaw`).
"""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from collections.abc import Sequence

from agent.errors import FailedPrecondition, Unavailable
from agent.host import freeze_holder, process
from agent.host.mount import Mount
from agent.host.pipe import Pipe

SYNC_TIMEOUT_S = 30.0
"""How long writing back before the freeze may take. A volume with a low limit and much unwritten needs longer."""
END_TIMEOUT_S = 5.0
THAW_TIMEOUT_S = 5.0
_REAP_TIMEOUT_S = 5.0
_NOT_YET = "writing back takes too long"


class Freeze:
    """One frozen filesystem: made by `freeze`, over with `end`, which has to be called."""

    def __init__(self, holder: _Holder, mounts: Sequence[Mount]) -> None:
        self._holder = holder
        self._mounts = tuple(mounts)
        self.thawed = False
        """It is known to be over."""
        self._over = asyncio.create_task(self._wait_for_end(), name="frozen filesystem")

    async def end(self) -> None:
        """Thaw. Unavailable, though thawed, unless it had been frozen all the time until now.

        DeadlineExceeded when its device does not answer: the child goes on trying, and so should the caller (`thaw`).
        """
        self._holder.let_go()
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                how = await asyncio.shield(self._over)
        except TimeoutError:
            await thaw(self._mounts)
            self.thawed = True
            how = "the program that holds it does not answer"
        if how == freeze_holder.THAWED:
            return
        reasons = {
            freeze_holder.LATE: "it took longer than the filesystem may be frozen",
            freeze_holder.LOST: "somebody else thawed the filesystem meanwhile",
        }
        raise Unavailable(f"the freeze did not last: {reasons.get(how, how)}; repeat the call")

    async def _wait_for_end(self) -> str:
        how = await self._holder.word()
        if not how:
            await thaw(self._mounts)
            how = "the program that held it was killed"
        self.thawed = True
        await self._holder.reap()
        return how


async def freeze(mounts: Sequence[Mount], seconds: float) -> Freeze:
    """Write back and freeze the filesystem that `mounts` show, for at most `seconds`.

    Unavailable when that takes too long now; FailedPrecondition when this kind of filesystem, or this process, cannot.
    Somebody else's freeze is as good: it is used and left to them.
    """
    holder = _Holder("hold", str(seconds), *_pairs(mounts))
    try:
        async with asyncio.timeout(SYNC_TIMEOUT_S + seconds):
            word = await holder.word()
    except TimeoutError:
        word = _NOT_YET
    except BaseException:
        holder.let_go()
        raise
    if word == freeze_holder.FROZEN:
        return Freeze(holder, mounts)
    holder.let_go()
    if word != _NOT_YET:
        await holder.reap()
    code = int(word.partition(" ")[2] or 0) if word.startswith("refused ") else 0
    if code in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EPERM):
        raise FailedPrecondition(f"{mounts[0].source} ({mounts[0].fs_type}) cannot be frozen: {os.strerror(code)}")
    reason = os.strerror(code) if code else word or "the program that should hold it was killed"
    raise Unavailable(f"{mounts[0].source} could not be frozen now: {reason}; repeat the call")


async def thaw(mounts: Sequence[Mount]) -> bool:
    """Thaw what `mounts` show; False when it was not frozen. DeadlineExceeded when its device does not answer."""
    argv = [sys.executable, "-I", "-S", freeze_holder.__file__, "thaw", *_pairs(mounts)]
    done = await process.run(argv, timeout_s=THAW_TIMEOUT_S)
    return done.stdout.strip() == freeze_holder.THAWED


def _pairs(mounts: Sequence[Mount]) -> list[str]:
    return [text for mount in mounts for text in (str(mount.target), str(mount.id))]


class _Holder:
    """The child. Never killed, not even when it does not answer: it may be about to freeze, and must be there then."""

    def __init__(self, *arguments: str) -> None:
        argv = [sys.executable, "-I", "-S", freeze_holder.__file__, *arguments]
        self._reader = asyncio.StreamReader()
        try:
            self._words = Pipe(self._reader.feed_data)
        except OSError as error:
            raise Unavailable(f"cannot start a process: {error.strerror}") from error
        self._words.ended.add_done_callback(lambda _: self._reader.feed_eof())
        try:
            # Not agent.host.process: its children die with us. A session of its own, out of reach of our signals.
            self._process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=self._words.write_end, stderr=subprocess.DEVNULL, cwd="/",
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self._words.close()
            raise Unavailable(f"cannot start a process: {error.strerror}") from error
        self._words.close_write_end()

    async def word(self) -> str:
        """The next thing it says, "" when it has ended."""
        return (await self._reader.readline()).decode(errors="replace").strip()

    def let_go(self) -> None:
        """Ask it to thaw and end; as often as wanted."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    async def reap(self) -> None:
        """After its last word."""
        self.let_go()
        self._words.close()
        try:
            await asyncio.to_thread(self._process.wait, _REAP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return  # `subprocess` itself reaps it when it starts the next one
