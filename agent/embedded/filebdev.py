"""Bdevs over memory and regular files: malloc, AIO and uring."""

from __future__ import annotations

import asyncio
import ctypes
import ctypes.util
import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from uuid import uuid4

from agent.embedded.bdev import Bdev, BdevRegistry
from agent.embedded.rpc import RpcFault

MIN_BLOCK_BYTES = 512

INLINE_IO_BYTES = 256 * 1024
"""Up to here the page cache answers faster than a thread can be woken."""

_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_libc = ctypes.CDLL(ctypes.util.find_library("c") or "libc.so.6", use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

T = TypeVar("T")


class BlockDeviceRefused(RpcFault):
    """The embedded target serves regular files only."""

    def __init__(self, path: str) -> None:
        super().__init__(
            -errno.ENOTSUP,
            f"{path} is not a regular file: the embedded target serves files only, use spdk_tgt for devices",
        )


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Make the range read as zeroes, giving its space back. Raises OSError."""
    if length <= 0:
        return
    if _libc.fallocate(fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, length) != 0:
        code = ctypes.get_errno()
        if code != errno.EOPNOTSUPP:
            raise OSError(code, os.strerror(code))
        _write_zeroes(fd, offset, length)


def _write_zeroes(fd: int, offset: int, length: int) -> None:
    zeroes = bytes(min(length, 1024 * 1024))
    while length > 0:
        length_now = os.pwrite(fd, zeroes[:length], offset)
        offset, length = offset + length_now, length - length_now


def read_exactly(fd: int, offset: int, length: int) -> bytes:
    """`length` bytes; past the end of the file they are zero. Raises OSError."""
    data = os.pread(fd, length, offset)
    if len(data) == length:
        return data
    parts = [data]
    got = len(data)
    while data and got < length:
        data = os.pread(fd, length - got, offset + got)
        parts.append(data)
        got += len(data)
    return b"".join(parts) + bytes(length - got)


def write_fully(fd: int, offset: int, data: bytes | bytearray | memoryview) -> None:
    """All of `data`. Raises OSError."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


async def off_loop(size: int, work: Callable[[], T]) -> T:
    """Run `work` here when it moves little, in a thread when `size` is large."""
    return work() if size <= INLINE_IO_BYTES else await asyncio.to_thread(work)


class FdBdev(Bdev):
    """A bdev over an open file descriptor, which stays open until the I/O under way is done."""

    def __init__(self, name: str, uuid: str, block_size: int, num_blocks: int, fd: int) -> None:
        super().__init__(name, uuid, block_size, num_blocks)
        self.fd = fd
        self._users = 0
        self._closing = False

    @contextmanager
    def _open(self) -> Iterator[int]:
        """The descriptor, kept open meanwhile. Raises OSError once the bdev is closed."""
        if self._closing:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        self._users += 1
        try:
            yield self.fd
        finally:
            self._users -= 1
            if self._closing:
                self.close()

    def close(self) -> None:
        """Refuse further I/O and close the descriptor, now or with the last I/O."""
        self._closing = True
        if self._users == 0 and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    async def do_read(self, offset: int, length: int) -> bytes:
        with self._open() as fd:
            return await off_loop(length, lambda: read_exactly(fd, offset, length))

    async def do_write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        with self._open() as fd:
            await off_loop(len(data), lambda: write_fully(fd, offset, data))

    async def do_write_zeroes(self, offset: int, length: int) -> None:
        with self._open() as fd:
            punch_hole(fd, offset, length)

    async def do_unmap(self, offset: int, length: int) -> None:
        await self.do_write_zeroes(offset, length)

    async def do_flush(self) -> None:
        with self._open() as fd:
            await asyncio.to_thread(os.fdatasync, fd)


class MallocBdev(FdBdev):
    """Memory; gone with the process."""

    product_name = "Malloc disk"
    module = "malloc"
    numa_id: ClassVar[int | None] = -1

    def __init__(self, name: str, uuid: str, block_size: int, num_blocks: int) -> None:
        fd = os.memfd_create(f"quarry-{name[:64]}", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, block_size * num_blocks)
        except OSError as error:
            os.close(fd)
            raise RpcFault(-errno.ENOMEM) from error
        super().__init__(name, uuid, block_size, num_blocks, fd)

    @property
    def supported_io(self) -> frozenset[str]:
        return super().supported_io | {"zcopy", "compare", "abort", "copy"}

    async def do_flush(self) -> None:
        """Memory has nothing to flush."""


class RegularFileBdev(FdBdev):
    """A regular file."""

    def __init__(self, name: str, path: str, block_size: int, uuid: str | None, *, readonly: bool = False) -> None:
        """Raises RpcFault with the errno of the real target."""
        fd = open_regular(path, readonly=readonly)
        try:
            num_blocks = blocks_in(fd, block_size)
        except RpcFault:
            os.close(fd)
            raise
        super().__init__(name, uuid or str(uuid4()), block_size, num_blocks, fd)
        self.path = path
        self.readonly = readonly

    def size_now(self) -> int:
        """Bytes that the file has now, in whole blocks."""
        return os.fstat(self.fd).st_size // self.block_size * self.block_size

    def rescan(self, registry: BdevRegistry) -> None:
        """Take over the size that the file has now."""
        registry.resize(self, self.size_now() // self.block_size)


class AioBdev(RegularFileBdev):
    product_name = "AIO disk"
    module = "aio"

    @property
    def supported_io(self) -> frozenset[str]:
        writes = {"write", "write_zeroes"} if not self.readonly else set()
        return frozenset({"read", "flush", "reset"} | writes)

    def driver_specific(self) -> dict[str, Any]:
        return {
            "aio": {
                "filename": self.path,
                "block_size_override": True,
                "readonly": self.readonly,
                "fallocate": False,
                "nowait": False,
            }
        }


class UringBdev(RegularFileBdev):
    product_name = "URING bdev"
    module = "uring"

    @property
    def supported_io(self) -> frozenset[str]:
        return frozenset({"read", "write", "write_zeroes", "get_zone_info", "zone_management"})

    def driver_specific(self) -> dict[str, Any]:
        return {"uring": {"filename": self.path}}


def open_regular(path: str, *, readonly: bool) -> int:
    """Open the file behind a disk. Raises RpcFault: -ENOENT, -EISDIR, ..., BlockDeviceRefused."""
    try:
        mode = Path(path).stat().st_mode if path else 0
        if path and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise BlockDeviceRefused(path)
        fd = os.open(path, (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC)
    except ValueError as error:
        raise RpcFault(-errno.EINVAL) from error
    except OSError as error:
        raise RpcFault(-(error.errno or errno.EIO)) from error
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise RpcFault(-errno.EISDIR) if stat.S_ISDIR(mode) else BlockDeviceRefused(path)


def blocks_in(fd: int, block_size: int) -> int:
    """Blocks in the file. Raises RpcFault -EINVAL for a block size that is none or does not divide the size."""
    size = os.fstat(fd).st_size
    if block_size < MIN_BLOCK_BYTES or block_size & (block_size - 1) or size % block_size:
        raise RpcFault(-errno.EINVAL)
    return size // block_size
