"""An append-only file of checked records: the metadata of one logical volume store.

One record is one line: CRC-32 of the rest in hexadecimal, a space, JSON. A record is either wholly there or not, so a
change that must be atomic is one record. A process killed while appending leaves a torn tail that the next reader
drops; a bad record with good ones behind it is damage, not a torn tail, and is refused.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

_RECORD_START = re.compile(rb"[0-9a-f]{8} \{")


class JournalDamaged(Exception):
    """The journal cannot be trusted; nothing may be deleted on its word."""


class JournalBusy(Exception):
    """Another process has the journal."""


def _line(record: dict[str, Any]) -> bytes:
    body = msgspec.json.encode(record)
    return b"%08x %b\n" % (zlib.crc32(body), body)


def _parse(line: bytes) -> dict[str, Any] | None:
    checksum, separator, body = line.partition(b" ")
    if not separator or len(checksum) != 8:
        return None
    try:
        if int(checksum, 16) != zlib.crc32(body):
            return None
        record = msgspec.json.decode(body)
    except (ValueError, msgspec.DecodeError):
        return None
    return record if isinstance(record, dict) else None


def _scan(content: bytes) -> tuple[list[dict[str, Any]], int]:
    """The records and the length of the good part. Raises JournalDamaged."""
    records: list[dict[str, Any]] = []
    good = 0
    while good < len(content):
        end = content.find(b"\n", good)
        record = _parse(content[good:end]) if end >= 0 else None
        if record is None:
            break
        records.append(record)
        good = end + 1
    for start in _RECORD_START.finditer(content, good + 1):
        if _parse(content[start.start() :].partition(b"\n")[0]) is not None:
            raise JournalDamaged(f"bad record at byte {good} with good ones behind it")
    return records, good


class Journal:
    """An open journal, locked against other processes."""

    def __init__(self, path: Path, fd: int, records: int, size: int) -> None:
        self._path = path
        self._fd = fd
        self._sync_running: asyncio.Task[None] | None = None
        self._sync_waiting: asyncio.Task[None] | None = None
        self.records = records
        self.size = size
        self.files_added = False
        """Set it when a record speaks of a new file beside the journal: its name is durable with the next `commit`."""

    @classmethod
    def create(cls, path: Path, first: dict[str, Any]) -> Journal:
        """A new journal with one record, durable on return. Raises OSError."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        journal = cls(path, fd, 0, 0)
        journal.append(first)
        os.fsync(fd)
        sync_directory(path.parent)
        return journal

    @classmethod
    def open(cls, path: Path) -> tuple[Journal, list[dict[str, Any]]]:
        """The journal and its records; a torn tail is cut off. Raises JournalDamaged, JournalBusy, OSError."""
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            content = path.read_bytes()
            records, good = _scan(content)
            if good < len(content):
                os.ftruncate(fd, good)
                os.fsync(fd)
        except BlockingIOError as error:
            os.close(fd)
            raise JournalBusy(f"{path} is in use by another target") from error
        except BaseException:
            os.close(fd)
            raise
        path.with_name(path.name + ".new").unlink(missing_ok=True)
        return cls(path, fd, len(records), good), records

    def append(self, record: dict[str, Any]) -> None:
        """Add a record; it survives the death of this process. `commit` makes it survive the machine's.

        Raises OSError, the journal being unchanged then.
        """
        line = _line(record)
        written = 0
        try:
            while written < len(line):
                written += os.write(self._fd, line[written:])
        except OSError:
            os.ftruncate(self._fd, self.size)
            raise
        self.size += len(line)
        self.records += 1

    async def commit(self) -> None:
        """Return when everything appended so far is on the disk. Concurrent callers share one flush."""
        if self._sync_waiting is None:
            self._sync_waiting = asyncio.get_running_loop().create_task(self._sync_after(self._sync_running))
        await asyncio.shield(self._sync_waiting)

    async def _sync_after(self, previous: asyncio.Task[None] | None) -> None:
        if previous is not None:
            await asyncio.wait({previous})
        self._sync_running, self._sync_waiting = self._sync_waiting, None
        directory, self.files_added = self.files_added, False
        try:
            await asyncio.to_thread(self._sync, self._fd, directory)
        except OSError:
            self.files_added |= directory
            raise

    def _sync(self, fd: int, directory: bool) -> None:
        if directory:
            sync_directory(self._path.parent)
        os.fdatasync(fd)

    async def settle(self) -> None:
        """Wait until no flush is under way; the file may be replaced or closed until the next `await`."""
        while pending := {task for task in (self._sync_running, self._sync_waiting) if task and not task.done()}:
            await asyncio.wait(pending)

    async def rewrite(self, state: Callable[[], Iterable[dict[str, Any]]]) -> None:
        """Replace the content by `state()`; a crash leaves the old journal or the new one. Raises OSError."""
        await self.settle()
        fresh = self._path.with_name(self._path.name + ".new")
        lines = [_line(record) for record in state()]
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with os.fdopen(os.dup(fd), "wb") as file:
                file.write(b"".join(lines))
            os.fsync(fd)
            fresh.rename(self._path)
        except BaseException:
            os.close(fd)
            raise
        os.close(self._fd)  # the old file has no name any more, whatever happens next
        self._fd, self.records, self.size = fd, len(lines), sum(map(len, lines))
        self.files_added = True  # until the new name is durable
        sync_directory(self._path.parent)
        self.files_added = False

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def sync_directory(path: Path) -> None:
    """Make the names in the directory durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
