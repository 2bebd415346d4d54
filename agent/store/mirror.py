"""The database in memory at one version, brought up to date from the change log.

The writer thread and the event loop own one each; neither shares it, so neither needs a lock.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

from agent.model import Resource
from agent.store import database
from agent.store.change import Change
from agent.store.documents import KINDS, decode
from agent.store.interface import EventType


@dataclass(slots=True)
class Mirror:
    version: int = 0
    resources: dict[str, dict[str, Resource]] = field(default_factory=lambda: {kind: {} for kind in KINDS})

    def apply(self, change: Change) -> None:
        """Takes over a change; its version must be the next one."""
        named = self.resources[change.kind]
        if change.type is EventType.DELETED:
            named.pop(change.resource.meta.name, None)
        else:
            named[change.resource.meta.name] = change.resource
        self.version = change.version


def load(connection: sqlite3.Connection, path: Path) -> Mirror:
    """Everything, read at one moment. Raises FailedPrecondition for a newer schema or unknown documents."""
    nested = connection.in_transaction
    if not nested:
        connection.execute("BEGIN")
    try:
        found = database.schema_version(connection)
        if found > len(database.MIGRATIONS):
            raise database.newer_schema(path, found)
        mirror = Mirror(version=last_version(connection))
        for kind, name, version, document in connection.execute("SELECT kind, name, version, document FROM resources"):
            resource = decode(kind, name, version, document)
            mirror.resources[kind][name] = resource
        return mirror
    finally:
        if not nested:
            connection.execute("COMMIT")


def last_version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("SELECT max(version) FROM changes").fetchone()
    return version or 0


def read_changes(connection: sqlite3.Connection, after: int, path: Path) -> list[Change] | None:
    """The changes after version `after` in order; None when the log no longer reaches back that far."""
    rows = connection.execute(
        "SELECT version, kind, name, type, document FROM changes WHERE version > ? ORDER BY version", (after,)
    ).fetchall()
    if rows and rows[0][0] != after + 1:
        return None
    changes = []
    for version, kind, name, event, document in rows:
        if kind == database.SCHEMA_CHANGE:
            raise database.newer_schema(path, database.schema_version(connection))
        changes.append(Change(version, EventType(event), decode(kind, name, version, document), document))
    return changes
