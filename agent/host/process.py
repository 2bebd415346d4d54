"""Programs of the host, run as child processes: the one place that starts any.

Every child dies with us, also when we are killed with SIGKILL: PR_SET_PDEATHSIG (prctl(2)) is set by `setpriv`, then a
shell compares its parent with our pid, which closes the gap in which we could have died before the signal was armed,
and becomes the program by exec, so that the pid is the program's own. `preexec_fn` would do the same in one step, but
it makes Python fork a process with threads and run everybody's fork handlers (see agent.host.child). The signal is sent
when the *thread* that started the child ends: that is the thread of the event loop.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import signal
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from agent.errors import CommandFailed, DeadlineExceeded, FailedPrecondition, InvalidArgument, Unavailable, shorten
from agent.host.child import Child
from agent.host.pipe import Pipe
from agent.tasks.background import noticed

MAX_OUTPUT_BYTES = 4 << 20
"""A program that prints more than this on stdout is killed; of stderr the last `MAX_STDERR_BYTES` are kept."""

MAX_STDERR_BYTES = 64 << 10
MAX_LOG_LINE_BYTES = 8 << 10
REAP_TIMEOUT_S = 5.0
"""How long a killed child may take to go. One stuck in the kernel (state D) cannot be waited for."""

PACKAGES: Mapping[str, str] = {
    "blkid": "util-linux",
    "blockdev": "util-linux",
    "btrfs": "btrfs-progs",
    "e2fsck": "e2fsprogs",
    "ledctl": "ledmon",
    "losetup": "mount",
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "nvme": "nvme-cli",
    "resize2fs": "e2fsprogs",
    "setpriv": "util-linux",
    "smartctl": "smartmontools",
    "umount": "mount",
    "xfs_growfs": "xfsprogs",
    "xfs_logprint": "xfsprogs",
    "xfs_repair": "xfsprogs",
}
"""Debian package of each program we call."""

_SEARCH_AFTER_PATH = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin")
_DIE_WITH_PARENT = 'if [ "$PPID" = "$0" ]; then exec "$@"; fi; exit 1'


Watch = Callable[[str], bool]
"""Gets a line of output; returns whether it is progress only."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A program that ended. Text is UTF-8; bytes that are not become surrogates (as in file names)."""

    stdout: str
    stderr: str
    code: int


async def run(
    argv: Sequence[str],
    *,
    timeout_s: float | None,
    input: bytes | None = None,
    ok_codes: Collection[int] = (0,),
    watch: Watch | None = None,
) -> Completed:
    """Run a program to its end, in the C locale, with stdin closed or fed with `input`.

    `timeout_s` None: for as long as it takes. `watch` gets each line of stdout as it comes, and keeps out of the result
    those that it says are progress.

    Raises CommandFailed for an exit code outside `ok_codes` (negative: killed by that signal) or too much output,
    DeadlineExceeded after `timeout_s` seconds, FailedPrecondition when the program is not installed, Unavailable when
    the machine cannot start a process now. After a deadline or a cancellation the whole process group is gone.
    """
    command = _guarded(argv)
    output = _Captured(argv, watch)
    try:
        process = _start(command, input, output.stdout, output.stderr)
        output.follow(process.pid)
        try:
            async with asyncio.timeout(timeout_s):
                await output.ended()
                code = await process.wait()
        except TimeoutError:
            await _kill(process)
            raise DeadlineExceeded(f"{argv[0]} did not end within {timeout_s:g} s and was killed") from None
        except BaseException:
            await _kill(process)
            raise
    finally:
        output.close()
    return output.completed(code, ok_codes)


class Process:
    """A child that runs for long, in a process group of its own; its output goes to a log, line by line."""

    def __init__(self, argv: Sequence[str], process: Child, output: _Logged) -> None:
        self.argv = tuple(argv)
        self.pid = process.pid
        self._process = process
        self._watch = asyncio.create_task(self._follow(output), name=f"process {argv[0]} {process.pid}")
        noticed("child-output", self._watch)

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative: killed by that signal."""
        return self._process.returncode

    async def wait(self) -> int:
        """The exit code, when the child has ended and its last line is in the log. May be cancelled and repeated."""
        await asyncio.shield(self._watch)
        return await self._process.wait()

    async def terminate(self, grace_s: float) -> int:
        """SIGTERM to the group, SIGKILL after `grace_s` seconds; returns the exit code. Ended already: no error."""
        try:
            if self.returncode is None:
                _signal_group(self.pid, signal.SIGTERM)
                with suppress(TimeoutError):
                    async with asyncio.timeout(grace_s):
                        return await self.wait()
        finally:
            # Also on cancellation: whoever asked for the end of the child must not leave it running.
            if self.returncode is None:
                _signal_group(self.pid, signal.SIGKILL)
        try:
            async with asyncio.timeout(REAP_TIMEOUT_S):
                return await self.wait()
        except TimeoutError:
            raise DeadlineExceeded(f"{self.argv[0]} (pid {self.pid}) does not end, not even by SIGKILL") from None

    async def _follow(self, output: _Logged) -> None:
        try:
            await self._process.wait()
            # What the child started itself ends with it, and so lets go of the other end of the pipe.
            _signal_group(self.pid, signal.SIGKILL)
            await asyncio.wait([output.pipe.ended], timeout=REAP_TIMEOUT_S)
        finally:
            output.close()


async def spawn(argv: Sequence[str], *, log: logging.Logger) -> Process:
    """Start a program that goes on running beside us. `log` receives its stdout and stderr, one record a line.

    Raises FailedPrecondition when the program is not installed, Unavailable when no process can be started.
    """
    command = _guarded(argv)
    output = _Logged(log)
    try:
        process = _start(command, None, output.pipe, output.pipe)
    except BaseException:
        output.close()
        raise
    return Process(argv, process, output)


class _Captured:
    """What a program prints: all of stdout, unless it is too much, and the end of stderr."""

    def __init__(self, argv: Sequence[str], watch: Watch | None) -> None:
        self._argv = argv
        self._watch = watch
        self._line = b""
        self._pid = 0
        self._out, self._err, self._is_too_much = bytearray(), bytearray(), False
        with _descriptors():
            self.stdout = Pipe(self._take_out)
            try:
                self.stderr = Pipe(self._take_err)
            except BaseException:
                self.stdout.close()
                raise

    def follow(self, pid: int) -> None:
        """`pid` leads the group that prints."""
        self._pid = pid

    async def ended(self) -> None:
        """Return when nobody can print any more."""
        await asyncio.wait([self.stdout.ended, self.stderr.ended])

    def close(self) -> None:
        self.stdout.close()
        self.stderr.close()

    def completed(self, code: int, ok_codes: Collection[int]) -> Completed:
        """Raises CommandFailed."""
        if self._is_too_much:
            raise CommandFailed(self._argv, -signal.SIGKILL, f"it printed more than {MAX_OUTPUT_BYTES} bytes")
        text = self._err.decode(errors="surrogateescape")
        if code not in ok_codes:
            raise CommandFailed(self._argv, code, text)
        self._out += self._line
        return Completed(self._out.decode(errors="surrogateescape"), text, code)

    def _take_out(self, chunk: bytes) -> None:
        if self._is_too_much:
            return
        self._out += chunk if self._watch is None else self._kept(chunk, self._watch)
        if len(self._out) + len(self._line) > MAX_OUTPUT_BYTES:
            self._is_too_much = True
            _signal_group(self._pid, signal.SIGKILL)

    def _kept(self, chunk: bytes, watch: Watch) -> bytes:
        """What is no progress of the lines that `chunk` completes."""
        *lines, self._line = (self._line + chunk).split(b"\n")
        return b"".join(line + b"\n" for line in lines if not watch(line.decode(errors="surrogateescape")))

    def _take_err(self, chunk: bytes) -> None:
        self._err += chunk
        del self._err[:-MAX_STDERR_BYTES]


class _Logged:
    """What a spawned child prints, in `log` line by line."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._pending = b""
        with _descriptors():
            self.pipe = Pipe(self._take)

    def close(self) -> None:
        self.pipe.close()
        self._line(self._pending)
        self._pending = b""

    def _take(self, chunk: bytes) -> None:
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        if len(self._pending) > MAX_LOG_LINE_BYTES:
            lines.append(self._pending)
            self._pending = b""
        for line in lines:
            self._line(line)

    def _line(self, line: bytes) -> None:
        text = line[:MAX_LOG_LINE_BYTES].decode(errors="replace").rstrip()
        if text:
            self._log.info("%s", text)


def find_program(name: str) -> str | None:
    """Path of a program, or None. The system directories are searched too: PATH of a user often lacks sbin."""
    return shutil.which(name, path=_search_path())


def _search_path() -> str:
    return os.pathsep.join((os.environ.get("PATH", ""), *_SEARCH_AFTER_PATH))


def _required(name: str) -> str:
    path = find_program(name)
    if path is None:
        package = PACKAGES.get(name)
        remedy = f"install it (Debian package {package})" if package else "install it or correct the path"
        raise FailedPrecondition(f"the program {shorten(name)} is not on this machine: {remedy}")
    return path


def _guarded(argv: Sequence[str]) -> list[str]:
    """The command line that arms the death signal and then becomes `argv`."""
    if any("\0" in argument for argument in argv):
        raise InvalidArgument("argument", f"{shorten(argv[0])} cannot be given a NUL character")
    guard = [_required("setpriv"), "--pdeathsig", "KILL", "--", "/bin/sh", "-c", _DIE_WITH_PARENT, str(os.getpid())]
    return [*guard, _required(argv[0]), *argv[1:]]


def _start(command: Sequence[str], input: bytes | None, stdout: Pipe, stderr: Pipe) -> Child:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LC_") and name != "PPID"}
    environment |= {"LC_ALL": "C", "PATH": _search_path()}
    try:
        with _descriptors():
            return Child(command, environment, input, stdout.write_end, stderr.write_end)
    finally:
        stdout.close_write_end()
        stderr.close_write_end()


@contextmanager
def _descriptors() -> Iterator[None]:
    """The errors of a machine that cannot start a process."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.E2BIG:
            raise InvalidArgument("argument", "the command line is longer than the kernel allows") from error
        raise Unavailable(f"cannot start a process: {error.strerror}") from error


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


async def _kill(process: Child) -> None:
    """End the child's whole group (it may outlive its leader) and reap the child."""
    _signal_group(process.pid, signal.SIGKILL)
    with suppress(TimeoutError):
        async with asyncio.timeout(REAP_TIMEOUT_S):
            await process.wait()
