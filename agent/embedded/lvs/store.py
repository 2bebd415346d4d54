"""One loaded logical volume store: its lvols, its space, and the journal that both are written to first."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import heapq
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from uuid import UUID, uuid4

from agent.embedded.bdev import BdevRegistry, ClaimType
from agent.embedded.filebdev import FdBdev
from agent.embedded.lvs import datafile, records
from agent.embedded.lvs.journal import Journal, JournalDamaged, sync_directory
from agent.embedded.lvs.layout import Layout, clear_superblock, write_superblock
from agent.embedded.lvs.leftovers import DATA_SUFFIX, Leftovers
from agent.embedded.lvs.lvol import LvolBdev
from agent.embedded.lvs.records import LvolRecord, StoreRecord
from agent.tasks.background import noticed

log = logging.getLogger(__name__)

JOURNAL_NAME = "journal"

COMPACT_SLACK = 2000
"""Journal records beyond four per lvol before the journal is rewritten."""


def remove_stores(parent: Path) -> None:
    """Remove the folders of stores in `parent`, and nothing else that may be there."""
    for journal in parent.glob(f"*/{JOURNAL_NAME}"):
        with contextlib.suppress(ValueError):
            UUID(journal.parent.name)
            shutil.rmtree(journal.parent, ignore_errors=True)


class Lvstore:
    """A store on one base bdev. Every change goes to the journal before it is visible."""

    def __init__(
        self, registry: BdevRegistry, base: FdBdev, directory: Path, journal: Journal, record: StoreRecord
    ) -> None:
        self.files = datafile.FileCache()
        self.base = base
        self.directory = directory
        self.record = record
        self.registry = registry
        self.lvols: dict[str, LvolBdev] = {}
        self.names: dict[str, LvolBdev | None] = {}
        """By name; None for a name that an operation under way will use."""
        self.closed = False
        self._journal = journal
        self._children: dict[str, dict[str, None]] = {}
        self._used_clusters = 0
        self.leftovers = Leftovers(directory, record.layout.cluster_bytes)
        self._used_pages = 1  # the super blob
        self._free_ids: list[int] = []
        self._next_id = 1
        self._compaction: asyncio.Task[None] | None = None

    # --- life -----------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, registry: BdevRegistry, base: FdBdev, parent: Path, name: str, layout: Layout) -> Lvstore:
        """A new empty store; durable on return. What older stores left in `parent` is removed. Raises OSError."""
        uuid = uuid4()
        remove_stores(parent)
        directory = parent / str(uuid)
        directory.mkdir(parents=True)
        record = StoreRecord(str(uuid), name, layout)
        journal = Journal.create(directory / JOURNAL_NAME, records.change(store=record))
        for made in (parent, parent.parent):
            sync_directory(made)
        write_superblock(base.fd, uuid, layout)
        store = cls(registry, base, directory, journal, record)
        base.claim("lvol", ClaimType.READ_MANY_WRITE_ONE)
        return store

    @classmethod
    def load(cls, registry: BdevRegistry, base: FdBdev, parent: Path, uuid: UUID) -> Lvstore:
        """The store that the superblock names; leftovers of interrupted operations are collected.

        Raises JournalDamaged, JournalBusy, OSError: nothing was changed then.
        """
        directory = parent / str(uuid)
        journal, content = Journal.open(directory / JOURNAL_NAME)
        try:
            record, lvols, freed = records.replay(content)
            if record.layout.total_clusters * record.layout.cluster_bytes > base.size_bytes:
                raise JournalDamaged(f"disk {base.name} is smaller than the lvstore on it")
            store = cls(registry, base, directory, journal, record)
            for lvol in sorted(lvols.values(), key=lambda lvol: lvol.blob_id):
                store._check_file(lvol)
                store._account(None, lvol)
                store._next_id = max(store._next_id, lvol.blob_id + 1)
        except BaseException:
            journal.close()
            raise
        taken = {lvol.blob_id for lvol in lvols.values()}
        store._free_ids = [number for number in range(1, store._next_id) if number not in taken]
        store._collect([*lvols, *freed])
        store.leftovers.found(freed)
        base.claim("lvol", ClaimType.READ_MANY_WRITE_ONE)
        for lvol in sorted(lvols.values(), key=lambda lvol: lvol.blob_id):
            store.publish(lvol).snapshot = bool(store._children.get(lvol.uuid))
        return store

    def _check_file(self, lvol: LvolRecord) -> None:
        """Give the data file the size on record: a resize writes both, one after the other."""
        path = self.path_of(lvol.uuid)
        size = lvol.clusters * self.cluster_bytes
        try:
            if path.stat().st_size != size:
                os.truncate(path, size)
            if lvol.thin and lvol.parent is None and lvol.own.count < lvol.clusters:
                self._recount(path, lvol)
        except FileNotFoundError as error:
            raise JournalDamaged(f"data file {path} of lvol {lvol.name} is missing") from error

    def _recount(self, path: Path, lvol: LvolRecord) -> None:
        """Own what was written past us, through a loop device on the data file."""
        with self.files.open(path) as fd:
            for start, stop in datafile.data_ranges(fd, lvol.clusters * self.cluster_bytes):
                for cluster in range(start // self.cluster_bytes, (stop - 1) // self.cluster_bytes + 1):
                    lvol.own.add(cluster)

    def _collect(self, lvols: Iterable[str]) -> None:
        known = {self.path_of(uuid) for uuid in lvols}
        for path in self.directory.glob(f"*{DATA_SUFFIX}"):
            if path not in known:
                log.info("removing %s, left by an operation that was interrupted", path)
                path.unlink()

    async def close(self) -> None:
        """Let go of the disk; the store stays on it."""
        self.detach()
        await self._journal.settle()
        self._journal.close()

    async def destroy(self) -> None:
        """Remove the store and everything in it from the disk. Raises OSError."""
        self.detach()
        clear_superblock(self.base.fd)
        self.base.release()
        await self._journal.settle()
        self._journal.close()
        await asyncio.to_thread(shutil.rmtree, self.directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.directory.parent.rmdir()

    def detach(self) -> None:
        """Take all lvols away at once; nothing is written to the disk any more. `close` does what has to wait."""
        self.closed = True
        for bdev in list(self.lvols.values()):
            self.registry.remove(bdev.name)
        self.lvols.clear()
        self.names.clear()
        self.files.close()

    # --- facts ----------------------------------------------------------------------------------------------------

    @property
    def uuid(self) -> str:
        return self.record.uuid

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def cluster_bytes(self) -> int:
        return self.record.layout.cluster_bytes

    @property
    def base_name(self) -> str:
        return self.base.name

    @property
    def free_clusters(self) -> int:
        zeroing = self.leftovers.zeroing_clusters
        return max(0, self.record.layout.data_clusters - self._used_clusters - zeroing)

    @property
    def free_pages(self) -> int:
        """Metadata pages left; each lvol takes one, and one more per 512 clusters of its own.

        Below zero when more was written past the target than there are pages for.
        """
        return self.record.layout.md_pages - self._used_pages

    def path_of(self, uuid: str) -> Path:
        return self.directory / f"{uuid}{DATA_SUFFIX}"

    def children(self, uuid: str) -> list[LvolBdev]:
        """The clones of a snapshot, oldest first."""
        return [self.lvols[child] for child in self._children.get(uuid, ())]

    def relatives(self, lvol: LvolRecord) -> tuple[str | None, list[str]]:
        parent = self.lvols.get(lvol.parent) if lvol.parent is not None else None
        return parent.record.name if parent else None, [child.record.name for child in self.children(lvol.uuid)]

    # --- changes --------------------------------------------------------------------------------------------------

    def take_id(self) -> int:
        """The lowest free place, as the real one gives out metadata pages."""
        if self._free_ids:
            return heapq.heappop(self._free_ids)
        self._next_id += 1
        return self._next_id - 1

    def give_back_id(self, number: int) -> None:
        heapq.heappush(self._free_ids, number)

    def apply(
        self, put: Iterable[LvolRecord] = (), drop: Iterable[str] = (), freed: records.Freed | None = None
    ) -> None:
        """Make one atomic change, in the journal and then in memory; new lvols are not published yet.

        Raises OSError, nothing being changed then.
        """
        put, drop = list(put), list(drop)
        self._journal.append(records.change(put, drop, freed=freed))
        for record in put:
            known = self.lvols.get(record.uuid)
            self._journal.files_added |= known is None
            self._account(known.record if known else None, record)
            if known is not None:
                known.record = record
        self.leftovers.zeroing |= freed or {}
        for uuid in drop:
            bdev = self.lvols.pop(uuid)
            self.names.pop(bdev.record.name, None)
            self.give_back_id(bdev.record.blob_id)
            self._account(bdev.record, None)
        self._compact_when_due()

    async def zero(self, uuid: str) -> None:
        """Zero what the deletion of an lvol has freed; killed in between, the rest is found at the next load."""
        await self.leftovers.zero(uuid, lambda: self.closed)
        if not self.closed:
            self._journal.append(records.zeroed(uuid))
            self.leftovers.forget(uuid)

    def apply_store(self, record: StoreRecord) -> None:
        """Change the store's own record. Raises OSError."""
        self._journal.append(records.change(store=record))
        self.record = record

    def _account(self, old: LvolRecord | None, new: LvolRecord | None) -> None:
        if old is not None:
            self._used_clusters -= old.own.count
            self._used_pages -= old.metadata_pages
            if old.parent is not None:
                self._children[old.parent].pop(old.uuid)
        if new is not None:
            self._used_clusters += new.own.count
            self._used_pages += new.metadata_pages
            if new.parent is not None:
                self._children.setdefault(new.parent, {})[new.uuid] = None
        elif old is not None:
            self._children.pop(old.uuid, None)

    def publish(self, record: LvolRecord) -> LvolBdev:
        """Make the bdev of a lvol that is in the journal. Raises NameTaken."""
        bdev = LvolBdev(self, record, self.path_of(record.uuid), self.base.block_size)
        self.registry.add(bdev)
        self.lvols[record.uuid] = bdev
        self.names[record.name] = bdev
        return bdev

    def allocate(self, lvol: LvolRecord, clusters: list[int]) -> bool:
        if len(clusters) > self.free_clusters:
            return False
        before = lvol.own.extent_pages
        for cluster in clusters:
            lvol.own.add(cluster)
        pages = lvol.own.extent_pages - before
        try:
            if pages > self.free_pages:
                raise OSError(errno.ENOSPC, "no metadata page left")
            self._journal.append(records.allocation(lvol.uuid, clusters))
        except OSError:
            for cluster in clusters:
                lvol.own.discard(cluster)
            return False
        self._used_clusters += len(clusters)
        self._used_pages += pages
        self.leftovers.hand_out(self.path_of(lvol.uuid), clusters, shown=lvol.parent is None)
        self._compact_when_due()
        return True

    def release(self, lvol: LvolRecord, clusters: list[int]) -> None:
        self._journal.append(records.allocation(lvol.uuid, clusters, free=True))
        before = lvol.own.extent_pages
        for cluster in clusters:
            lvol.own.discard(cluster)
        self._used_clusters -= len(clusters)
        self._used_pages += lvol.own.extent_pages - before
        self._compact_when_due()

    def own(self, lvol: LvolRecord, written: list[int], gone: list[int]) -> None:
        """Take over what has happened to the data file already, whether the pool has that many clusters or not."""
        if gone:
            self.release(lvol, gone)
        if not written:
            return
        before = lvol.own.extent_pages
        for cluster in written:
            lvol.own.add(cluster)
        self._used_clusters += len(written)
        self._used_pages += lvol.own.extent_pages - before
        self._journal.append(records.allocation(lvol.uuid, written))
        self._compact_when_due()

    async def commit(self) -> None:
        if not self.closed:
            await self._journal.commit()

    def _compact_when_due(self) -> None:
        busy = self._compaction is not None and not self._compaction.done()
        if not busy and self._journal.records > COMPACT_SLACK + 4 * len(self.lvols):
            self._compaction = asyncio.get_running_loop().create_task(self._compact())
            noticed("journal-compaction", self._compaction)

    async def _compact(self) -> None:
        await self._journal.settle()
        if self.closed:
            return
        try:
            await self._journal.rewrite(
                lambda: records.snapshot_of(
                    self.record, (bdev.record for bdev in self.lvols.values()), self.leftovers.freed()
                )
            )
        except OSError as error:
            log.warning("lvstore %s: the journal could not be rewritten: %s", self.name, error)
