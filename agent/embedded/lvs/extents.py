"""Where the blocks of a file lie on the disk of its filesystem (FIEMAP, Documentation/filesystems/fiemap.rst)."""

from __future__ import annotations

import errno
import fcntl
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agent.embedded.lvs.datafile import data_ranges

_FIEMAP = 0xC020660B
_HEADER = struct.Struct("=QQIIII")
_EXTENT = struct.Struct("=QQQQQIIII")
_BATCH = 256
_LAST, _UNKNOWN, _UNWRITTEN = 0x1, 0x2, 0x800
_NOT_OFFERED = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL})


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes `start` to `stop` of a file. `shift`: from there to the place on the disk; None: not known (yet)."""

    start: int
    stop: int
    shift: int | None


def changed_ranges(fd: int, below: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Where the file has data of its own: not the blocks that it shares with `below`, which it was copied from.

    Where the filesystem shares no blocks, or does not say where they are, all its data are its own. What the kernel has
    not written back yet over shared blocks shows up when it has (dirty_expire_centisecs, 30 s as a rule).
    """
    try:
        shared, own = list(_extents(below, size_bytes)), list(_extents(fd, size_bytes))
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise
        yield from data_ranges(fd, size_bytes)
        return
    for extent in own:
        yield from _without(extent, shared)


def _without(extent: Extent, shared: Sequence[Extent]) -> Iterator[tuple[int, int]]:
    at = extent.start
    for other in shared:
        if extent.shift is None or other.shift != extent.shift or other.stop <= at or other.start >= extent.stop:
            continue
        if other.start > at:
            yield at, other.start
        at = min(other.stop, extent.stop)
    if at < extent.stop:
        yield at, extent.stop


def _extents(fd: int, size_bytes: int) -> Iterator[Extent]:
    """In ascending order; what was allocated and never written is a hole. Raises OSError."""
    start = 0
    while start < size_bytes:
        request = bytearray(_HEADER.size + _BATCH * _EXTENT.size)
        _HEADER.pack_into(request, 0, start, size_bytes - start, 0, 0, _BATCH, 0)
        fcntl.ioctl(fd, _FIEMAP, request)
        count = _HEADER.unpack_from(request)[3]
        flags = _LAST
        for number in range(count):
            found = _EXTENT.unpack_from(request, _HEADER.size + number * _EXTENT.size)
            logical, physical, length, flags = found[0], found[1], found[2], found[5]
            start = logical + length
            if not flags & _UNWRITTEN:
                shift = None if flags & _UNKNOWN else physical - logical
                yield Extent(logical, min(start, size_bytes), shift)
        if flags & _LAST or not count:
            return
