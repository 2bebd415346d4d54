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
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from agent.errors import CommandFailed, DeadlineExceeded, FailedPrecondition, InvalidArgument, Unavailable, shorten
from agent.host import child
from agent.host.child import Child

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
    "losetup": "mount",
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "mount": "mount",
    "nvme": "nvme-cli",
    "resize2fs": "e2fsprogs",
    "setpriv": "util-linux",
    "umount": "mount",
    "xfs_growfs": "xfsprogs",
    "xfs_repair": "xfsprogs",
}
"""Debian package of each program we call."""

_SEARCH_AFTER_PATH = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin")
_DIE_WITH_PARENT = 'if [ "$PPID" = "$0" ]; then exec "$@"; fi; exit 1'


@dataclass(frozen=True, slots=True)
class Completed:
    """A program that ended. Text is UTF-8; bytes that are not become surrogates (as in file names)."""

    stdout: str
    stderr: str
    code: int


async def run(
    argv: Sequence[str], *, timeout_s: float, input: bytes | None = None, ok_codes: Collection[int] = (0,)
) -> Completed:
    """Run a program to its end, in the C locale, with stdin closed or fed with `input`.

    Raises CommandFailed for an exit code outside `ok_codes` (negative: killed by that signal) or too much output,
    DeadlineExceeded after `timeout_s` seconds, FailedPrecondition when the program is not installed, Unavailable when
    the machine cannot start a process now. After a deadline or a cancellation the whole process group is gone.
    """
    command = _guarded(argv)
    stdin = child.DEVNULL if input is None else child.PIPE
    process = _start(command, stdin=stdin, stdout=child.PIPE, stderr=child.PIPE)
    try:
        async with asyncio.timeout(timeout_s):
            await process.connect(input)
            stdout, stderr = await _communicate(argv, process)
            code = await process.wait()
    except TimeoutError:
        await _kill(process)
        raise DeadlineExceeded(f"{argv[0]} did not end within {timeout_s:g} s and was killed") from None
    except BaseException:
        await _kill(process)
        raise
    finally:
        process.close()
    text = stderr.decode(errors="surrogateescape")
    if code not in ok_codes:
        raise CommandFailed(argv, code, text)
    return Completed(stdout.decode(errors="surrogateescape"), text, code)


class Process:
    """A child that runs for long, in a process group of its own; its output goes to a log, line by line."""

    def __init__(self, argv: Sequence[str], process: Child, output: _Output) -> None:
        self.argv = tuple(argv)
        self.pid = process.pid
        self._process = process
        self._watch = asyncio.create_task(self._follow(output), name=f"process {argv[0]} {process.pid}")

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

    async def _follow(self, output: _Output) -> None:
        reading = asyncio.create_task(output.forward())
        try:
            await self._process.wait()
            # What the child started itself ends with it, and so lets go of the other end of the pipe.
            _signal_group(self.pid, signal.SIGKILL)
            await asyncio.wait([reading], timeout=REAP_TIMEOUT_S)
        finally:
            reading.cancel()
            output.close()


async def spawn(argv: Sequence[str], *, log: logging.Logger) -> Process:
    """Start a program that goes on running beside us. `log` receives its stdout and stderr, one record a line.

    Raises FailedPrecondition when the program is not installed, Unavailable when no process can be started.
    """
    command = _guarded(argv)
    output = await _Output.open(log)
    try:
        process = _start(command, stdin=child.DEVNULL, stdout=output.write_end, stderr=child.STDOUT)
    except BaseException:
        output.close()
        raise
    finally:
        os.close(output.write_end)
    return Process(argv, process, output)


class _Output:
    """The pipe that a spawned child writes to."""

    def __init__(
        self, reader: asyncio.StreamReader, transport: asyncio.BaseTransport, write_end: int, log: logging.Logger
    ) -> None:
        self.write_end = write_end
        self._reader = reader
        self._transport = transport
        self._log = log

    @classmethod
    async def open(cls, log: logging.Logger) -> _Output:
        read_end, write_end = os.pipe()
        reader = asyncio.StreamReader()
        pipe = os.fdopen(read_end, "rb", buffering=0)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        return cls(reader, transport, write_end, log)

    def close(self) -> None:
        self._transport.close()

    async def forward(self) -> None:
        """Log line by line until the end."""
        pending = b""
        while chunk := await self._reader.read(65536):
            *lines, pending = (pending + chunk).split(b"\n")
            if len(pending) > MAX_LOG_LINE_BYTES:
                lines.append(pending)
                pending = b""
            for line in lines:
                self._line(line)
        self._line(pending)

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


def _start(command: Sequence[str], *, stdin: int, stdout: int, stderr: int) -> Child:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LC_") and name != "PPID"}
    environment |= {"LC_ALL": "C", "PATH": _search_path()}
    try:
        return Child(command, environment, stdin=stdin, stdout=stdout, stderr=stderr)
    except OSError as error:
        if error.errno == errno.E2BIG:
            raise InvalidArgument("argument", "the command line is longer than the kernel allows") from error
        raise Unavailable(f"cannot start a process: {error.strerror}") from error


async def _communicate(argv: Sequence[str], process: Child) -> tuple[bytes, bytes]:
    async with asyncio.TaskGroup() as group:
        stdout = group.create_task(_read_all(process))
        stderr = group.create_task(_read_tail(process.stderr))
    if stdout.result() is None:
        raise CommandFailed(argv, -signal.SIGKILL, f"it printed more than {MAX_OUTPUT_BYTES} bytes")
    return stdout.result() or b"", stderr.result()


async def _read_all(process: Child) -> bytes | None:
    """Everything on stdout until its end, or None when it is too much: then the program is killed."""
    data = bytearray()
    while process.stdout is not None and (chunk := await process.stdout.read(65536)):
        data += chunk
        if len(data) > MAX_OUTPUT_BYTES:
            _signal_group(process.pid, signal.SIGKILL)
            return None
    return bytes(data)


async def _read_tail(stream: asyncio.StreamReader | None) -> bytes:
    data = bytearray()
    while stream is not None and (chunk := await stream.read(65536)):
        data += chunk
        del data[:-MAX_STDERR_BYTES]
    return bytes(data)


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


async def _kill(process: Child) -> None:
    """End the child's whole group (it may outlive its leader) and reap the child."""
    _signal_group(process.pid, signal.SIGKILL)
    with suppress(TimeoutError):
        async with asyncio.timeout(REAP_TIMEOUT_S):
            await process.wait()
