"""The store of one machine: a SQLite file that several processes may use at the same time.

Reads are answered from memory after a look at the file's last version, so they also see what other processes wrote.
Writes go to the writer thread. Watches hear of our own writes at once and of others' within POLL_S.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import cast
from weakref import WeakSet

from agent.errors import QuarryError, Unavailable
from agent.model import Resource, Volume
from agent.store import database, mirror
from agent.store.change import Change
from agent.store.documents import encode
from agent.store.interface import Event, EventType, R
from agent.store.mirror import Mirror
from agent.store.watch import Watcher
from agent.store.writer import Outcome, Write, Writer
from agent.tasks.background import Background

POLL_S = 0.05
"""Seconds between looks for other processes' writes while somebody watches; a look takes about 10 microseconds."""

GATHER_S = 0.005
CROWD = 4
"""When the last commit had at least CROWD writes, the next one waits GATHER_S seconds for more: a commit costs an fsync
and two changes of threads whatever it carries. Who writes alone does not wait."""

TRIAL_S = 1.0
"""Between trials to write to a file that could not be written."""

log = logging.getLogger(__name__)

_POLL_PAUSE_MAX_S = 1.0
"""Between looks at a file that cannot be read."""


async def open_local(path: Path) -> LocalStore:
    """Opens the database at `path`, creating or migrating it first.

    Raises FailedPrecondition for a database of a newer version or of another program, Unavailable when the file
    cannot be used; both name it.
    """
    return await asyncio.to_thread(_open, path, asyncio.get_running_loop())


def _open(path: Path, loop: asyncio.AbstractEventLoop) -> LocalStore:
    path = path.absolute()
    try:
        database.prepare(path)
        with database.translated(path):
            return LocalStore(path, loop, _load(path, database.connect_reader(path)))
    except database.NoRoom as error:
        if not path.exists() or not path.stat().st_size:
            raise  # nothing was ever stored: there is nothing to go on with
        log.error("%s. What is stored is read, and served as it is", error)
        with database.translated(path):
            return LocalStore(path, loop, _load(path, database.connect_alone(path)), trouble=str(error))


def _load(path: Path, connection: sqlite3.Connection) -> Mirror:
    try:
        return mirror.load(connection, path)
    finally:
        connection.close()


class LocalStore:
    """Implements `agent.store.interface.Store`. Used from the event loop it was opened in.

    A write whose caller is cancelled may still happen, like one whose caller was killed.

    `trouble`: why the file could not even be read the usual way, `state` is what it holds. It is read, and answered
    from memory, until there is room again: nobody else can have written to it meanwhile.
    """

    def __init__(
        self,
        path: Path,
        loop: asyncio.AbstractEventLoop,
        state: Mirror,
        *,
        trouble: str = "",
    ) -> None:
        self._path = path
        self._loop = loop
        self._reader: sqlite3.Connection | None = None
        self._state = state
        self._watchers: WeakSet[Watcher] = WeakSet()
        self._background = Background(pause_s=POLL_S, pause_max_s=_POLL_PAUSE_MAX_S)
        self._is_polling = False
        self._closed = False
        self._outbox: list[Write] = []
        self._crowd = 0
        """Writes in the last commit."""
        self.writes: Counter[tuple[str, str]] = Counter()
        """Writes that are durable, by kind and what was done (ADDED, MODIFIED, DELETED)."""
        self._from_memory = bool(trouble)
        self._trouble = ""
        self._writer = Writer(path, self._report)
        self._writer.start()
        if trouble:
            loop.call_soon_threadsafe(self._cannot_write, trouble)

    @property
    def trouble(self) -> str:
        """Why nothing can be written now, as a sentence with the remedy; empty when the last write was."""
        return self._trouble

    # --- reading -----------------------------------------------------------------------------------------------

    async def get(self, kind: type[R], name: str) -> R | None:
        self._refresh()
        return cast("R | None", self._state.resources[kind.__name__].get(name))

    async def list(self, kind: type[R]) -> list[R]:
        self._refresh()
        return cast("list[R]", list(self._state.resources[kind.__name__].values()))

    def watch(self, kind: type[R], since: int | None = None) -> AsyncIterator[Event[R]]:
        """Changes of `kind` after version `since` (None: from this call on). Raises Unavailable."""
        self._refresh()
        watcher = Watcher(kind.__name__)
        if since is not None and since != self._state.version:
            self._replay(watcher, since)
        self._watchers.add(watcher)
        if not self._is_polling:
            self._is_polling = True
            self._background.once("store-poll", self._poll)
        return watcher

    # --- writing -----------------------------------------------------------------------------------------------

    async def create(self, resource: R) -> R:
        meta = resource.meta
        stamped = replace(resource, meta=replace(meta, created_at=meta.created_at or time.time()))
        return cast("R", await self._write(EventType.ADDED, stamped))

    async def update(self, resource: R) -> R:
        return cast("R", await self._write(EventType.MODIFIED, resource))

    async def delete(self, kind: type[R], name: str, version: int | None = None) -> None:
        await self._submit(Write(EventType.DELETED, kind.__name__, name, version, None, b"", self._future()))

    async def _write(self, event: EventType, resource: Resource) -> Resource | None:
        meta, kind = resource.meta, type(resource).__name__
        return await self._submit(
            Write(event, kind, meta.name, meta.version, resource, encode(resource), self._future())
        )

    async def _submit(self, write: Write) -> Resource | None:
        if self._closed:
            raise self._closed_error()
        if not self._outbox:
            if self._crowd < CROWD:
                self._loop.call_soon(self._send)
            else:
                self._loop.call_later(GATHER_S, self._send)
        self._outbox.append(write)
        return await write.done

    def _send(self) -> None:
        """All writes that came together: the writer is woken once, and commits them at once."""
        writes, self._outbox = self._outbox, []
        if writes:
            self._writer.submit(writes)

    def _future(self) -> asyncio.Future[Resource | None]:
        return self._loop.create_future()

    def _report(self, changes: Sequence[Change], outcomes: Sequence[Outcome]) -> None:
        """In the writer thread: one wake-up of the event loop for the whole batch."""
        self._loop.call_soon_threadsafe(self._committed, changes, outcomes)

    def _committed(self, changes: Sequence[Change], outcomes: Sequence[Outcome]) -> None:
        """In the event loop: first everybody can see the batch, then its writers hear that it is durable."""
        self._apply(changes)
        self._crowd = len(outcomes)
        self._judge(outcomes)
        for write, outcome in outcomes:
            if not isinstance(outcome, QuarryError):
                self.writes[write.kind, write.type.value] += 1
            if write.done.done():
                continue
            if isinstance(outcome, QuarryError):
                write.done.set_exception(outcome)
            else:
                write.done.set_result(outcome)

    # --- a file that cannot be written ---------------------------------------------------------------------------

    def _judge(self, outcomes: Sequence[Outcome]) -> None:
        """One commit fails or succeeds as a whole, whatever became of its writes."""
        failure = next((outcome for _, outcome in outcomes if isinstance(outcome, Unavailable)), None)
        if failure is not None:
            self._cannot_write(str(failure))
        elif outcomes and self._trouble:
            log.info("%s can be written again", self._path)
            self._trouble = ""

    def _cannot_write(self, why: str) -> None:
        if not self._trouble and not self._closed:
            log.error("nothing can be recorded: %s", why)
            self._background.once("store-trial", self._try_to_write)
        self._trouble = why

    async def _try_to_write(self) -> None:
        """Until it works again, whether anybody has something to write or not."""
        while True:
            await asyncio.sleep(TRIAL_S)
            if not self._trouble:
                return
            with suppress(QuarryError):
                await self._submit(Write(EventType.DELETED, Volume.__name__, "", None, None, b"", self._future()))

    # --- following the file ------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Takes over what was committed since, by whomever."""
        if self._closed:
            raise self._closed_error()
        try:
            self._catch_up()
            self._from_memory = False
        except database.NoRoom:
            if not self._from_memory:
                raise

    def _catch_up(self) -> None:
        with database.translated(self._path):
            reader = self._reading()
            if mirror.last_version(reader) == self._state.version:
                return
            changes = mirror.read_changes(reader, self._state.version, self._path)
            if changes is not None:
                self._apply(changes)
                return
            self._state = mirror.load(reader, self._path)
        for watcher in self._watchers:
            watcher.relist(self._state.version)

    def _reading(self) -> sqlite3.Connection:
        if self._reader is None:
            self._reader = database.connect_reader(self._path)
        return self._reader

    def _apply(self, changes: Sequence[Change]) -> None:
        """Takes over what follows on the present version; what is beyond a gap is left to the next refresh."""
        for change in changes:
            if change.version != self._state.version + 1:
                continue
            self._state.apply(change)
            for watcher in self._watchers:
                watcher.offer(change)

    def _replay(self, watcher: Watcher, since: int) -> None:
        changes = None
        if since < self._state.version:
            with database.translated(self._path):
                changes = mirror.read_changes(self._reading(), since, self._path)
        if not changes:
            watcher.relist(self._state.version)
            return
        for change in changes:
            if change.version <= self._state.version:
                watcher.offer(change)

    async def _poll(self) -> None:
        """Looks for other processes' writes as long as anybody watches."""
        while self._watchers:
            await asyncio.sleep(POLL_S)
            self._refresh()
        self._is_polling = False

    # --- the end -----------------------------------------------------------------------------------------------

    def _closed_error(self) -> Unavailable:
        return Unavailable(f"the database {self._path} is closed")

    async def close(self) -> None:
        """Commits the writes under way, ends the watches and closes the file."""
        if self._closed:
            return
        self._closed = True
        await self._background.stop()
        self._send()
        await asyncio.to_thread(self._writer.close)
        if self._reader is not None:
            self._reader.close()
        for watcher in self._watchers:
            watcher.end()
