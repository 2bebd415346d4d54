"""The bdev of a lvol: I/O on its sparse file, clusters taken from the pool when they are first written."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from agent.embedded.bdev import Bdev, IoFailure
from agent.embedded.filebdev import off_loop, punch_hole, read_exactly, write_fully
from agent.embedded.gate import WriteGate
from agent.embedded.lvs.datafile import FileCache
from agent.embedded.lvs.records import LvolRecord

_READS = frozenset({"read", "reset", "seek_hole", "seek_data"})
_WRITES = _READS | {"write", "unmap", "write_zeroes"}


class Pool(Protocol):
    """What a lvol needs of its store."""

    files: FileCache

    @property
    def uuid(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def cluster_bytes(self) -> int: ...
    @property
    def base_name(self) -> str: ...

    def allocate(self, lvol: LvolRecord, clusters: list[int]) -> bool:
        """Give the clusters to the lvol; False when the pool has not that many or no metadata page to note them."""

    def release(self, lvol: LvolRecord, clusters: list[int]) -> None: ...

    def relatives(self, lvol: LvolRecord) -> tuple[str | None, list[str]]:
        """Names of the snapshot below and of the clones above."""

    async def commit(self) -> None:
        """Make the metadata written so far durable."""


class LvolBdev(Bdev):
    """A lvol, clone or snapshot."""

    product_name = "Logical Volume"
    module = "lvol"

    def __init__(self, pool: Pool, record: LvolRecord, path: Path, block_size: int) -> None:
        num_blocks = record.clusters * pool.cluster_bytes // block_size
        super().__init__(record.uuid, record.uuid, block_size, num_blocks)
        self.aliases = [f"{pool.name}/{record.name}"]
        self.record = record
        self.path = path
        self.gate = WriteGate()
        self.operation = asyncio.Lock()
        """Held by the one operation (snapshot, resize, delete, ...) that changes the lvol."""
        self.snapshot = False
        """Whether the target calls it a snapshot: made as one, or something was cloned from it; not remembered."""
        self._pool = pool
        self._changes = 0
        self._durable_changes = 0

    @property
    def supported_io(self) -> frozenset[str]:
        return _READS if self.record.read_only else _WRITES

    def driver_specific(self) -> dict[str, Any]:
        base, clones = self._pool.relatives(self.record)
        lvol: dict[str, Any] = {
            "lvol_store_uuid": self._pool.uuid,
            "base_bdev": self._pool.base_name,
            "thin_provision": self.record.thin,
            "num_allocated_clusters": self.record.own.count,
            "snapshot": self.snapshot,
            "clone": base is not None,
        }
        if base is not None:
            lvol["base_snapshot"] = base
        if clones:
            lvol["clones"] = clones
        lvol["esnap_clone"] = False
        return {"lvol": lvol, "embedded": {"file": str(self.path)}}

    async def do_read(self, offset: int, length: int) -> bytes:
        with self._pool.files.open(self.path) as fd:
            return await off_loop(length, lambda: read_exactly(fd, offset, length))

    async def do_write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        extent = (offset, len(data))
        await self._change(extent, lambda fd: write_fully(fd, offset, data), cost=len(data), allocate=extent)

    async def do_write_zeroes(self, offset: int, length: int) -> None:
        # What a thin lvol without a parent never wrote is zero already: the real one does not allocate for it either.
        sparse = self.record.thin and self.record.parent is None
        allocate = (offset, 0) if sparse else (offset, length)
        await self._change((offset, length), lambda fd: punch_hole(fd, offset, length), allocate=allocate)

    async def do_unmap(self, offset: int, length: int) -> None:
        def unmap(fd: int) -> None:
            for start, size in self._mine(offset, length):
                punch_hole(fd, start, size)
            self._release(offset, length)

        await self._change((offset, length), unmap, allocate=(offset, 0))

    async def do_flush(self) -> None:
        with self._pool.files.open(self.path) as fd:
            await asyncio.to_thread(os.fdatasync, fd)
        changes = self._changes
        if changes > self._durable_changes:
            await self._pool.commit()
            self._durable_changes = max(self._durable_changes, changes)

    async def _change(
        self, extent: tuple[int, int], work: Callable[[int], None], *, allocate: tuple[int, int], cost: int = 0
    ) -> None:
        """Run `work` on `extent` of the data file once writes may pass and the clusters of `allocate` are ours.

        Both are (offset, length) in bytes; `cost` is how much `work` moves.
        """
        await self.gate.enter()
        try:
            if self.removed:
                raise IoFailure(errno.ENODEV, f"lvol {self.name} was deleted")
            if self.read_only or sum(extent) > self.record.clusters * self._pool.cluster_bytes:
                raise IoFailure(errno.EROFS if self.read_only else errno.EIO, f"lvol {self.name} changed meanwhile")
            self._allocate(*allocate)
            with self._pool.files.open(self.path) as fd:
                await off_loop(cost, lambda: work(fd))
        finally:
            self.gate.leave()

    def _allocate(self, offset: int, length: int) -> None:
        size = self._pool.cluster_bytes
        missing = self.record.own.missing(offset // size, (offset + length - 1) // size) if length else []
        if not missing:
            return
        if not self._pool.allocate(self.record, missing):
            raise IoFailure(errno.ENOSPC, f"no free cluster in lvstore {self._pool.name}")
        self._changes += 1

    def _mine(self, offset: int, length: int) -> list[tuple[int, int]]:
        """What a discard of (offset, length) reaches: what the snapshots below own goes on to be seen, as in the real
        one (`spdk_blob_io_unmap` does nothing for clusters that the blob has not allocated)."""
        if self.record.parent is None:
            return [(offset, length)]
        size, end = self._pool.cluster_bytes, offset + length
        clusters = range(offset // size, -(-end // size))
        bounds = [
            (max(offset, each * size), min(end, (each + 1) * size)) for each in clusters if each in self.record.own
        ]
        return [(start, stop - start) for start, stop in bounds]

    def _release(self, offset: int, length: int) -> None:
        """Whole clusters of a thin lvol that has no parent go back to the pool, as in the real one."""
        if not self.record.thin or self.record.parent is not None:
            return
        size = self._pool.cluster_bytes
        whole = range(-(-offset // size), (offset + length) // size)
        if owned := [cluster for cluster in whole if cluster in self.record.own]:
            self._pool.release(self.record, owned)
            self._changes += 1
