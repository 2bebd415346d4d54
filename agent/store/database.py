"""The SQLite file: connections, durability, schema versions, the lock between processes, and errors that name the file.

`resources` holds the present, `changes` the last writes in order, from which other processes and watches learn.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from agent.errors import FailedPrecondition, QuarryError, Unavailable
from agent.host import room

BUSY_TIMEOUT_S = 5.0
"""How long a write waits for another process, in seconds; a batch of writes takes milliseconds."""

_READ_TIMEOUT_S = 0.25
"""Readers never wait for writers in WAL mode, only for the recovery after a crash; they run in the event loop."""

_APPLICATION_ID = 0x51555259
"""'QURY' in the file header: tells our file from other programs' SQLite files."""

SCHEMA_CHANGE = "schema"
"""Kind of the change that a migration leaves, so that a running older program notices and stops."""

Migration = Callable[[sqlite3.Connection], None]


def _version_1(connection: sqlite3.Connection) -> None:
    connection.execute(
        "CREATE TABLE resources (kind TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL,"
        " document BLOB NOT NULL, PRIMARY KEY (kind, name)) STRICT, WITHOUT ROWID"
    )
    connection.execute(
        "CREATE TABLE changes (version INTEGER PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL,"
        " type TEXT NOT NULL, document BLOB NOT NULL) STRICT"
    )


MIGRATIONS: Sequence[Migration] = (_version_1,)
"""Entry N brings a database of version N to version N + 1. Entries are never changed, only added."""


def translate(error: sqlite3.Error, path: Path) -> QuarryError:
    """The agent's error for one of SQLite's, decided by its primary result code."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code == sqlite3.SQLITE_NOTADB:
        return FailedPrecondition(f"{path} is not a SQLite database: move it away or restore it from a backup")
    if code in _NO_ROOM and (lack := room.lacking(path.parent)):
        return NoRoom(f"the database {path} cannot be written: {lack}")
    causes = {
        sqlite3.SQLITE_FULL: f"no space left on its filesystem, or for its owner: {room.REMEDY}",
        sqlite3.SQLITE_BUSY: f"locked by another process for more than {BUSY_TIMEOUT_S:g} s",
        sqlite3.SQLITE_READONLY: "it cannot be written to (permissions or a read-only filesystem)",
        sqlite3.SQLITE_CANTOPEN: "it cannot be opened (permissions or a missing folder)",
        sqlite3.SQLITE_IOERR: "reading or writing it failed",
        sqlite3.SQLITE_CORRUPT: "it is damaged: restore it from a backup",
    }
    return Unavailable(f"the database {path} is not usable: {causes.get(code, 'unexpected')} ({error})")


class NoRoom(Unavailable):
    """The filesystem of the database is full."""


_NO_ROOM = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}
"""How SQLite tells that a page, its log or the index of that found no room. It may be something else, too."""


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """SQLite's and the filesystem's errors inside become the agent's."""
    try:
        yield
    except sqlite3.Error as error:
        raise translate(error, path) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoRoom(f"the database {path} cannot be written: {error.strerror}; {room.REMEDY}") from error
        raise Unavailable(f"the database {path} is not usable: {error.strerror}") from error


class ProcessLock:
    """Serializes writers and checkpoints of one database across processes, in turn.

    SQLite's own locks would be enough to be correct, but: waiters poll with growing pauses and can starve, and up to
    3.51.2 two connections that write and checkpoint at the same instant may damage the file (sqlite.org/wal.html,
    "The WAL-Reset Bug"). The first file is the turnstile: who waits for the second one holds it, so that a process
    that has just released the lock queues behind. The kernel releases both when a process dies.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files = [os.open(f"{path}{suffix}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600) for suffix in _LOCKS]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Raises Unavailable when another process keeps it for longer than BUSY_TIMEOUT_S."""
        turnstile, lock = self._files
        deadline = time.monotonic() + BUSY_TIMEOUT_S
        self._acquire(turnstile, deadline)
        try:
            self._acquire(lock, deadline)
        finally:
            fcntl.flock(turnstile, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)

    def _acquire(self, file: int, deadline: float) -> None:
        pause_s = 0.0001
        while True:
            try:
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    held = f"locked by another process for more than {BUSY_TIMEOUT_S:g} s"
                    raise Unavailable(f"the database {self._path} is not usable: {held}") from None
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.002)

    def close(self) -> None:
        for file in self._files:
            os.close(file)


_LOCKS = ("-turn", "-lock")


def connect_writer(path: Path) -> sqlite3.Connection:
    """A connection whose commits survive power loss: write-ahead log, fsync at every commit."""
    return _connect(path, BUSY_TIMEOUT_S, "synchronous = FULL", "journal_size_limit = 16777216")


def connect_reader(path: Path) -> sqlite3.Connection:
    return _connect(path, _READ_TIMEOUT_S, "query_only = ON")


def connect_alone(path: Path) -> sqlite3.Connection:
    """A connection that reads where there is no room for anything: it keeps the index of the log in its memory.

    Nobody else can use the file meanwhile (sqlite.org/wal.html, "Use of WAL Without Shared-Memory").
    """
    return _connect(path, _READ_TIMEOUT_S, "locking_mode = EXCLUSIVE", "query_only = ON")


def _connect(path: Path, timeout_s: float, *pragmas: str) -> sqlite3.Connection:
    # Statements are as many as there are batch sizes; the default cache of 128 would prepare most of them anew.
    connection = sqlite3.connect(
        path, timeout=timeout_s, isolation_level=None, check_same_thread=False, cached_statements=1024
    )
    try:
        for each in pragmas:
            connection.execute(f"PRAGMA {each}")
    except sqlite3.Error:
        connection.close()  # one that is left open, if only by a traceback, keeps others out
        raise
    return connection


def prepare(path: Path, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Creates the database where it is missing and migrates an older one.

    Raises FailedPrecondition for one that is newer than this program or not ours, Unavailable when it cannot be used.
    """
    with translated(path):
        _create_file(path)
        lock = ProcessLock(path)
        try:
            with lock.held():
                connection = connect_writer(path)
                try:
                    _migrate(connection, path, migrations)
                finally:
                    connection.close()
        finally:
            lock.close()


def _create_file(path: Path) -> None:
    """An empty private file, its name on stable storage (SQLite syncs its own folder only for the log)."""
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        # Never one that is there: closing it would let go of the locks that SQLite has on it in this process.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    for folder in {path.parent, *(folder.parent for folder in missing)}:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration]) -> None:
    found = schema_version(connection)
    if found > len(migrations):
        raise newer_schema(path, found, len(migrations))
    (ours,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if ours != _APPLICATION_ID and (tables or found):
        raise FailedPrecondition(f"{path} belongs to another program: choose another file")
    (problem,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if problem != "ok":
        raise Unavailable(f"the database {path} is damaged: {problem}; restore it from a backup")
    connection.execute("PRAGMA journal_mode = WAL")
    if found == len(migrations):
        return
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    for step in migrations[found:]:
        step(connection)
    connection.execute(f"PRAGMA user_version = {len(migrations)}")
    if found:
        _start_new_log(connection)
    connection.execute("COMMIT")


def _start_new_log(connection: sqlite3.Connection) -> None:
    """Forgets changes written in the old form; the version goes on growing, the one row left tells older programs."""
    (last,) = connection.execute("SELECT coalesce(max(version), 0) FROM changes").fetchone()
    connection.execute("DELETE FROM changes")
    connection.execute("INSERT INTO changes VALUES (?, ?, '', '', x'')", (last + 1, SCHEMA_CHANGE))


def schema_version(connection: sqlite3.Connection) -> int:
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    return int(found)


def newer_schema(path: Path, found: int, known: int = len(MIGRATIONS)) -> FailedPrecondition:
    return FailedPrecondition(
        f"{path} has schema version {found}, this program knows up to {known}: it was used by a newer version, run that"
    )
