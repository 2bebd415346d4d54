"""Sparse files that hold the data of lvols: opened when needed, copied by reflink where the filesystem can."""

from __future__ import annotations

import errno
import fcntl
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.embedded.filebdev import punch_hole

_FICLONE = 0x40049409
_NO_REFLINK = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS})
_COPY_BYTES = 16 * 1024 * 1024


class FileCache:
    """Open file descriptors, at most `limit` idle ones; those in use are never closed."""

    def __init__(self, limit: int = 256) -> None:
        self._limit = limit
        self._idle: OrderedDict[Path, int] = OrderedDict()
        self._used: dict[Path, tuple[int, int]] = {}
        self._doomed: set[int] = set()

    @contextmanager
    def open(self, path: Path) -> Iterator[int]:
        """A descriptor for reading and writing `path`. Raises OSError."""
        fd = self._take(path)
        try:
            yield fd
        finally:
            self._give_back(path, fd)

    def _take(self, path: Path) -> int:
        if (used := self._used.get(path)) is not None:
            self._used[path] = (used[0], used[1] + 1)
            return used[0]
        fd = self._idle.pop(path, -1)
        if fd < 0:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._used[path] = (fd, 1)
        return fd

    def _give_back(self, path: Path, fd: int) -> None:
        _, users = self._used[path]
        if users > 1:
            self._used[path] = (fd, users - 1)
            return
        del self._used[path]
        if fd in self._doomed:
            self._doomed.discard(fd)
            os.close(fd)
            return
        self._idle[path] = fd
        if len(self._idle) > self._limit:
            os.close(self._idle.popitem(last=False)[1])

    def forget(self, path: Path) -> None:
        """Close the descriptor of `path`, at once or when its last user is done."""
        if (fd := self._idle.pop(path, -1)) >= 0:
            os.close(fd)
        elif (used := self._used.get(path)) is not None:
            self._doomed.add(used[0])

    def close(self) -> None:
        """Close what is idle."""
        for fd in self._idle.values():
            os.close(fd)
        self._idle.clear()
        self._doomed.update(fd for fd, _ in self._used.values())


def create(path: Path, size_bytes: int) -> None:
    """A new sparse file. Raises OSError (EFBIG when the filesystem has no files so large)."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, size_bytes)
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(fd)


def resize(path: Path, size_bytes: int) -> None:
    """Cut the file or extend it by a hole. Raises OSError."""
    os.truncate(path, size_bytes)


def copy(source: Path, target: Path, size_bytes: int) -> None:
    """`target` becomes a new file with the content of `source`, sharing its space where possible; durable on return.

    Blocks for as long as copying takes: run it in a thread. Raises OSError, nothing being left behind then.
    """
    read = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        write = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _copy(read, write)
            os.ftruncate(write, size_bytes)
            os.fsync(write)
        except OSError:
            target.unlink()
            raise
        finally:
            os.close(write)
    finally:
        os.close(read)


def fill(source: Path, target: Path, ranges: Iterable[tuple[int, int]]) -> None:
    """Make (offset, length) ranges of an existing file those of `source`; durable on return. Blocks like `copy`."""
    read = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        write = os.open(target, os.O_RDWR | os.O_CLOEXEC)
        try:
            for start, length in _joined(ranges):
                punch_hole(write, start, length)
                _copy_data(read, write, start, start + length)
            os.fsync(write)
        finally:
            os.close(write)
    finally:
        os.close(read)


def zero(path: Path, start: int, length: int) -> None:
    """Zero a range of an existing file. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        punch_hole(descriptor, start, length)
    finally:
        os.close(descriptor)


def move(source: Path, target: Path, start: int, to: int, length: int) -> None:
    """Copy what `source` has at `start` into an existing file at `to`, and zero it in `source`. Raises OSError."""
    read = os.open(source, os.O_RDWR | os.O_CLOEXEC)
    try:
        write = os.open(target, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.pwrite(write, os.pread(read, length, start), to)
        finally:
            os.close(write)
        punch_hole(read, start, length)
    finally:
        os.close(read)


def _joined(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Neighbours in ascending `ranges` as one."""
    at, size = 0, 0
    for start, length in ranges:
        if start != at + size:
            if size:
                yield at, size
            at, size = start, 0
        size += length
    if size:
        yield at, size


def _copy(read: int, write: int) -> None:
    try:
        fcntl.ioctl(write, _FICLONE, read)
    except OSError as error:
        if error.errno not in _NO_REFLINK:
            raise
        _copy_data(read, write, 0, os.fstat(read).st_size)


def _copy_data(read: int, write: int, begin: int, end: int) -> None:
    """Copy the data between `begin` and `end` where there is any; the holes stay as they are in `write`."""
    for start, stop in data_ranges(read, end, begin):
        while start < stop:
            copied = os.copy_file_range(read, write, min(_COPY_BYTES, stop - start), start, start)
            if copied == 0:
                raise OSError(errno.EIO, "the file shrank while it was copied")
            start += copied


def data_ranges(fd: int, end: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """Where the file has data, from byte `start` up to byte `end`."""
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        if start >= end:
            return
        stop = min(os.lseek(fd, start, os.SEEK_HOLE), end)
        yield start, stop
        start = stop
