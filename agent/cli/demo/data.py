"""Random data for the demo: written through a file, read back, and told apart by its SHA-256."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all), from a worker thread."""

CHUNK_BYTES = 1 << 20


class Stopped(Exception):
    """The work in the thread was asked to end."""


def write_file(path: Path, size_bytes: int, progress: Progress, stop: threading.Event) -> str:
    """Fill a new file with random data, durably. Returns the SHA-256 in hex."""
    digest = hashlib.sha256()
    with path.open("xb") as file:
        for done in _chunks(size_bytes, progress, stop):
            chunk = os.urandom(min(CHUNK_BYTES, size_bytes - done))
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def hash_file(path: Path, progress: Progress, stop: threading.Event) -> str:
    """SHA-256 of a file in hex."""
    digest = hashlib.sha256()
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        for _ in _chunks(size_bytes, progress, stop):
            digest.update(file.read(CHUNK_BYTES))
    return digest.hexdigest()


def _chunks(size_bytes: int, progress: Progress, stop: threading.Event) -> Iterator[int]:
    """Offsets of the chunks. Raises Stopped between two of them."""
    for offset in range(0, size_bytes, CHUNK_BYTES):
        if stop.is_set():
            raise Stopped
        progress(offset, size_bytes)
        yield offset


async def in_thread(work: Callable[[threading.Event], T]) -> T:
    """Run `work` in a thread. When cancelled, make it stop and wait until it has: its file must be closed."""
    stop = threading.Event()
    task = asyncio.create_task(asyncio.to_thread(work, stop))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()
        raise
