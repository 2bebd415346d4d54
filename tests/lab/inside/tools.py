"""Programs that the tests run in the machine, and waiting for what the kernel does by itself."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from grpc import StatusCode

from agent.csi.client import CallFailed

T = TypeVar("T")


class Failed(Exception):
    """A program ended with another status than 0."""


async def run(*argv: str | Path, timeout_s: float = 120.0) -> str:
    """Its output; Failed with both outputs unless it exits with 0."""
    process = await asyncio.create_subprocess_exec(
        *map(str, argv), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(timeout_s):
            out, errors = await process.communicate()
    except TimeoutError:
        process.kill()
        raise Failed(f"{' '.join(map(str, argv))} took more than {timeout_s:g} s") from None
    if process.returncode != 0:
        raise Failed(
            f"{' '.join(map(str, argv))}: status {process.returncode}\n{(out + errors).decode(errors='replace')}"
        )
    return out.decode(errors="replace")


async def until(read: Callable[[], T], wanted: Callable[[T], bool], timeout_s: float = 30.0) -> T:
    """What `read` gives as soon as it is `wanted`."""
    deadline = time.monotonic() + timeout_s
    while not wanted(value := read()):
        assert time.monotonic() < deadline, f"still {value!r} after {timeout_s:g} s"
        await asyncio.sleep(0.05)
    return value


async def patiently(call: Callable[[], Awaitable[None]], timeout_s: float = 60.0) -> None:
    """Repeat a call while the answer is "ask again", as kubelet does."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return await call()
        except CallFailed as error:
            again = error.code in (StatusCode.DEADLINE_EXCEEDED, StatusCode.UNAVAILABLE, StatusCode.ABORTED)
            if not again or time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.2)


@dataclass(frozen=True)
class FioResult:
    """`error` is 0 when every operation worked and every block read was the one written."""

    error: int
    operations: int
    longest_s: float


BACKLOG_BYTES = 1 << 20
ENDLESS: dict[str, str | int] = {"time_based": 1, "runtime": 500, "verify_backlog": BACKLOG_BYTES // 4096}
"""Options of one that writes blocks of 4 KiB, and verifies them a backlog at a time, until it is asked to `finish`."""

INTERRUPTED = 128
"""Exit status of a fio that was asked to end, and found nothing wrong."""


class Fio:
    """A running fio that writes with checksums and verifies what it wrote. `async with Fio(...) as fio`."""

    def __init__(
        self, filename: Path, *, size: str, options: dict[str, str | int] | None = None, verified: bool = True
    ) -> None:
        given: dict[str, str | int] = {
            "name": "lab",
            "thread": 1,
            "filename": str(filename),
            "size": size,
            "rw": "randwrite",
            "bs": "4k",
            "direct": 1,
            "ioengine": "libaio",
            "iodepth": 8,
            "output-format": "json",
        }
        if verified:
            given |= {"verify": "crc32c", "verify_fatal": 1}
        given |= options or {}
        self._argv = ["fio", *(f"--{name}={value}" for name, value in given.items())]
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Fio:
        self._process = await asyncio.create_subprocess_exec(
            *self._argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, cwd="/tmp",
        )  # fmt: skip
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def written(self) -> int:
        """Bytes that it has sent to the device itself, so neither the filesystem's own nor somebody else's."""
        assert self._process is not None
        assert self.running, "fio has ended"
        lines = Path(f"/proc/{self._process.pid}/io").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes:"))

    async def goes_on(self) -> None:
        """Return when all that was being written is written, read back and verified; with ENDLESS."""
        before = self.written()
        try:
            await until(self.written, lambda count: count > before + 2 * BACKLOG_BYTES, timeout_s=120)
        except AssertionError as error:
            if not self.running and self._process is not None:
                out, errors = await self._process.communicate()
                error.add_note((errors + out[:2000]).decode(errors="replace"))
            raise

    async def finish(self) -> FioResult:
        """Ask it to end: one that is to go on until the test has seen what it wants, however slow the machine is."""
        assert self._process is not None
        assert self.running, "fio has ended"
        self._process.send_signal(signal.SIGINT)
        return await self.result(ok_status=INTERRUPTED)

    async def result(self, timeout_s: float = 240.0, ok_status: int = 0) -> FioResult:
        """Wait for its end."""
        assert self._process is not None
        async with asyncio.timeout(timeout_s):
            out, errors = await self._process.communicate()
        text = out.decode(errors="replace")
        assert "{" in text, text + errors.decode(errors="replace")
        job: dict[str, Any] = json.JSONDecoder().raw_decode(text[text.index("{") :])[0]["jobs"][0]
        waits = [job["read"]["clat_ns"], job["write"]["clat_ns"], job.get("sync", {}).get("lat_ns", {})]
        longest = max(each.get("max", 0) for each in waits)
        return FioResult(
            int(job["error"]) or int(self._process.returncode != ok_status),
            job["read"]["total_ios"] + job["write"]["total_ios"],
            longest / 1e9,
        )


def write(path: Path, size: int) -> str:
    data = os.urandom(size)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()


def digest(path: Path) -> str:
    """Of what the device has: the page cache is dropped first."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def mount_options(path: Path) -> str:
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return next(line[3] + "," for line in lines if line[1] == str(path))
