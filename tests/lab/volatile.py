"""Disks that keep back what they were told to write until they are told to flush: a power cut takes the rest.

An NBD server (the NBD project's doc/proto.md) for QEMU to have its disks on. Each is two sparse files: what reads show,
and what a power cut leaves. A flush copies the ranges written since from the first to the second, FUA does so for one
write, `cut` copies them back. So what is lost is all that was not flushed: of what a real disk may lose, the most.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Mapping
from pathlib import Path

_CHUNK = 1 << 20
_OPTION_MAGIC, _REPLY_MAGIC = b"IHAVEOPT", 0x3E889045565A9
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_ABORT, _INFO, _GO = 2, 6, 7
_ACK, _INFO_REPLY, _UNSUPPORTED, _UNKNOWN = 1, 3, 1 << 31 | 1, 1 << 31 | 6
_FLAGS = 1 | 4 | 8 | 32 | 64  # has flags, flush, FUA, trim, write zeroes
_REQUEST = struct.Struct(">IHHQQI")
_REQUEST_MAGIC, _SIMPLE_MAGIC = 0x25609513, 0x67446698
_READ, _WRITE, _DISCONNECT, _FLUSH, _TRIM, _ZEROES = 0, 1, 2, 3, 4, 6
_FUA = 1


class Medium:
    """One disk of `size_bytes`, in files beside `path`."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._shown, self._kept = (
            os.open(f"{path}{suffix}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600) for suffix in (".disk", ".kept")
        )
        for descriptor in (self._shown, self._kept):
            os.ftruncate(descriptor, size_bytes)
        self._unflushed: list[tuple[int, int]] = []
        self._is_off = False
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._shown, length, offset).ljust(length, b"\0")

    def write(self, offset: int, data: bytes | None, length: int, *, fua: bool) -> None:
        """`data` None: zeroes."""
        with self._lock:
            if self._is_off:
                return
            _put(self._shown, offset, data, length)
            if fua:
                _put(self._kept, offset, data, length)
            else:
                self._unflushed.append((offset, length))

    def flush(self) -> None:
        with self._lock:
            if not self._is_off:
                self._copy(self._shown, self._kept)

    def switch_off(self) -> None:
        """From now on nothing changes any more, also not by a flush (QEMU's own, when it stops a machine)."""
        with self._lock:
            self._is_off = True

    def switch_on(self) -> int:
        """Without what was not flushed: so many bytes."""
        with self._lock:
            self._is_off = False
            return self._copy(self._kept, self._shown)

    def close(self) -> None:
        os.close(self._shown)
        os.close(self._kept)

    def _copy(self, source: int, sink: int) -> int:
        ranges, self._unflushed = self._unflushed, []
        for offset, length in ranges:
            for start in range(offset, offset + length, _CHUNK):
                part = min(_CHUNK, offset + length - start)
                data = os.pread(source, part, start)
                _put(sink, start, data if data.strip(b"\0") else None, part)
        return sum(length for _, length in ranges)


def _put(descriptor: int, offset: int, data: bytes | None, length: int) -> None:
    if data is not None:
        os.pwrite(descriptor, data, offset)
        return
    for start in range(offset, offset + length, _CHUNK):
        part = min(_CHUNK, offset + length - start)
        found = os.pread(descriptor, part, start)
        if found.strip(b"\0"):
            os.pwrite(descriptor, bytes(part), start)


class Media:
    """Serves disks of these sizes (bytes) by their names at the socket `path`, until `close`."""

    def __init__(self, path: Path, sizes: Mapping[str, int]) -> None:
        self._media = {name: Medium(path.parent / name, size) for name, size in sizes.items()}
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def switch_off(self) -> None:
        for medium in self._media.values():
            medium.switch_off()

    def switch_on(self) -> int:
        """So many bytes are lost."""
        return sum(medium.switch_on() for medium in self._media.values())

    def close(self) -> None:
        """When nobody is connected any more."""
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream, contextlib.suppress(OSError, struct.error):
            connection.sendall(b"NBDMAGIC" + _OPTION_MAGIC + struct.pack(">H", _FIXED_NEWSTYLE | _NO_ZEROES))
            stream.read(4)
            medium = self._negotiate(connection, stream)
            while medium is not None and (header := stream.read(_REQUEST.size)):
                magic, flags, kind, handle, offset, length = _REQUEST.unpack(header)
                assert magic == _REQUEST_MAGIC
                if kind == _DISCONNECT:
                    return
                data = stream.read(length) if kind == _WRITE else None
                answer = _carry_out(medium, kind, offset, data, length, fua=bool(flags & _FUA))
                connection.sendall(struct.pack(">IIQ", _SIMPLE_MAGIC, 0, handle) + answer)

    def _negotiate(self, connection: socket.socket, stream: object) -> Medium | None:
        read = stream.read  # type: ignore[attr-defined]
        while read(8) == _OPTION_MAGIC:
            option, length = struct.unpack(">II", read(8))
            data = read(length)

            def reply(kind: int, body: bytes = b"", option: int = option) -> None:
                connection.sendall(struct.pack(">QIII", _REPLY_MAGIC, option, kind, len(body)) + body)

            if option in (_INFO, _GO):
                (size,) = struct.unpack_from(">I", data)
                medium = self._media.get(data[4 : 4 + size].decode())
                if medium is None:
                    reply(_UNKNOWN)
                    continue
                reply(_INFO_REPLY, struct.pack(">HQH", 0, medium.size_bytes, _FLAGS))
                reply(_ACK)
                if option == _GO:
                    return medium
            elif option == _ABORT:
                reply(_ACK)
                return None
            else:
                reply(_UNSUPPORTED)
        return None


def _carry_out(medium: Medium, kind: int, offset: int, data: bytes | None, length: int, *, fua: bool) -> bytes:
    if kind == _READ:
        return medium.read(offset, length)
    if kind == _FLUSH:
        medium.flush()
    elif kind in (_WRITE, _ZEROES, _TRIM):
        medium.write(offset, data, length, fua=fua)
    return b""
