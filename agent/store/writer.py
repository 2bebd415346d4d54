"""The one thread that writes: it takes all writes waiting at the moment, decides each, and commits them together.

A commit costs an fsync, so its cost is shared by everybody who waited during the one before (group commit). A lone
write waits for nobody. Decisions are made in memory, and each batch is written by a fixed number of statements: every
call into SQLite releases the interpreter lock, and taking it back from a busy event loop costs more than the call.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from agent.errors import AlreadyExists, Conflict, NotFound, QuarryError, Unavailable
from agent.model import Resource
from agent.store import database, mirror
from agent.store.change import Change
from agent.store.documents import encode, stamped
from agent.store.interface import EventType
from agent.store.limits import KEPT_CHANGES
from agent.store.mirror import Mirror
from agent.tasks.failures import FAILURES

_BATCH_MAX = 256
_TRIM_EVERY = 256

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Write:
    """A write somebody waits for: the event it will cause, the version it expects (None: any), what it writes."""

    type: EventType
    kind: str
    name: str
    version: int | None
    resource: Resource | None
    document: bytes
    done: asyncio.Future[Resource | None]


Outcome = tuple[Write, Resource | QuarryError | None]
Report = Callable[[Sequence[Change], Sequence[Outcome]], None]


def decide(write: Write, current: Resource | None, version: int) -> Change | QuarryError | None:
    """What `write` does to `current`, as change number `version`; None when nothing is to be done."""
    if write.type is EventType.DELETED:
        if current is None:
            return None
        if write.version is not None and write.version != current.meta.version:
            return Conflict(write.kind, write.name, write.version)
        return _change(version, EventType.DELETED, current, encode(current))
    if write.type is EventType.ADDED and current is not None:
        return AlreadyExists(write.kind, write.name)
    if write.type is EventType.MODIFIED:
        if current is None:
            return NotFound(write.kind, write.name)
        if write.version is not None and write.version != current.meta.version:
            return Conflict(write.kind, write.name, write.version)
    if write.resource is None:
        return NotFound(write.kind, write.name)
    return _change(version, write.type, write.resource, write.document)


def _change(version: int, event: EventType, resource: Resource, document: bytes) -> Change:
    return Change(version, event, stamped(resource, version), document)


class Writer:
    """Owns the thread, its connection and its mirror. `report` is called in the thread after every commit."""

    def __init__(self, path: Path, report: Report) -> None:
        self._path = path
        self._report = report
        self._queue: queue.SimpleQueue[Sequence[Write] | None] = queue.SimpleQueue()
        self._lock = database.ProcessLock(path)
        self._made: sqlite3.Connection | None = None
        self._file = path.stat().st_ino
        self._mirror: Mirror | None = None
        self._failed = False
        """The last batch could not be written."""
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, writes: Sequence[Write]) -> None:
        """Queues writes; their outcomes come through `report`."""
        self._queue.put(writes)

    def close(self) -> None:
        """Commits what is queued, then ends the thread. Blocks."""
        self._queue.put(None)
        self._thread.join()
        try:
            with self._lock.held():
                if self._made is not None:
                    self._made.close()  # the last connection checkpoints
        except (QuarryError, sqlite3.Error) as error:
            log.warning("closing %s: %s", self._path, error)
        self._lock.close()

    @property
    def _connection(self) -> sqlite3.Connection:
        """Made when it is wanted: on a filesystem that is full it cannot be made."""
        if self._made is None:
            self._made = database.connect_writer(self._path)
        return self._made

    def _run(self) -> None:
        ended = False
        while not ended:
            batch, ended = self._take()
            try:
                changes, outcomes = self._commit(batch)
                self._failed = False
            except Exception as error:  # noqa: BLE001 - outermost loop of the thread: callers must get an answer
                self._mirror, self._failed = None, True
                if not isinstance(error, QuarryError):
                    FAILURES.counts["store-writer"] += 1
                changes, outcomes = [], [(write, self._failure(error)) for write in batch]
            try:
                self._report(changes, outcomes)
            except RuntimeError:
                return  # the event loop is gone, and everybody who waited with it

    def _take(self) -> tuple[list[Write], bool]:
        """All writes waiting now (at least one, unless ended), and whether this is the end."""
        batch: list[Write] = []
        item = self._queue.get()
        while item is not None:
            batch.extend(item)
            if len(batch) >= _BATCH_MAX:
                return batch, False
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _commit(self, batch: Sequence[Write]) -> tuple[list[Change], list[Outcome]]:
        if not batch:
            return [], []
        with self._lock.held(), database.translated(self._path):
            if self._path.stat().st_ino != self._file:
                raise Unavailable(f"the database {self._path} was replaced while in use: restart")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                state, changes = self._caught_up()
                foreign = len(changes)
                outcomes = self._decide(batch, state, changes)
                self._write(changes[foreign:])
                if self._failed:
                    self._prove()
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
        return changes, outcomes

    def _caught_up(self) -> tuple[Mirror, list[Change]]:
        """The mirror with everything other processes did, and what that was."""
        changes = None
        if self._mirror is not None:
            changes = mirror.read_changes(self._connection, self._mirror.version, self._path)
        if self._mirror is None or changes is None:
            self._mirror = mirror.load(self._connection, self._path)
            return self._mirror, []
        for change in changes:
            self._mirror.apply(change)
        return self._mirror, changes

    @staticmethod
    def _decide(batch: Iterable[Write], state: Mirror, changes: list[Change]) -> list[Outcome]:
        """Each write's outcome in turn, seeing the ones before it; adds what is to be written to `changes`."""
        outcomes: list[Outcome] = []
        for write in batch:
            decision = decide(write, state.resources[write.kind].get(write.name), state.version + 1)
            if isinstance(decision, Change):
                state.apply(decision)
                changes.append(decision)
                outcomes.append((write, decision.resource))
            else:
                outcomes.append((write, decision))
        return outcomes

    def _write(self, changes: Sequence[Change]) -> None:
        if not changes:
            return
        logged, last = [], {}
        for change in changes:
            name = change.resource.meta.name
            row = (change.version, change.kind, name, change.type.value, change.document)
            logged.append(row)
            last[change.kind, name] = row
        self._execute("INSERT INTO changes (version, kind, name, type, document) VALUES ", logged)
        gone = [key for key, row in last.items() if row[3] == EventType.DELETED]
        kept = [(kind, name, version, doc) for version, kind, name, event, doc in last.values() if event != "DELETED"]
        self._execute("INSERT OR REPLACE INTO resources (kind, name, version, document) VALUES ", kept)
        self._execute("DELETE FROM resources WHERE (kind, name) IN (VALUES ", gone, ")")
        newest = changes[-1].version
        if newest // _TRIM_EVERY != (changes[0].version - 1) // _TRIM_EVERY:
            self._connection.execute("DELETE FROM changes WHERE version <= ?", (newest - KEPT_CHANGES,))

    def _prove(self) -> None:
        """Have a page written even by a batch that changes nothing: that something is written is what is asked then."""
        version = database.schema_version(self._connection)
        self._connection.execute(f"PRAGMA user_version = {version}")

    def _execute(self, head: str, rows: Sequence[tuple[object, ...]], tail: str = "") -> None:
        """One statement for all rows."""
        if rows:
            values = ", ".join([f"({', '.join('?' * len(rows[0]))})"] * len(rows))
            self._connection.execute(head + values + tail, list(chain.from_iterable(rows)))

    def _failure(self, error: Exception) -> QuarryError:
        if isinstance(error, QuarryError):
            return error
        log.error("writing %s", self._path, exc_info=error)
        return Unavailable(f"writing {self._path} failed unexpectedly: {error!r}")
