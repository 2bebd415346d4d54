"""The `Store` interface: resources with versions, and watches.

A write that returned is durable: it survives `kill -9` and power loss. Versions grow with every write in the whole
store, so they also order the changes that a watch reports.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from agent.model import Disk, Snapshot, SnapshotGroup, StorageNode, Volume

R = TypeVar("R", StorageNode, Disk, Volume, Snapshot, SnapshotGroup)


class EventType(StrEnum):
    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    RELIST = "RELIST"
    """The reader fell too far behind or asked from too old a version: list again, then go on reading."""


@dataclass(frozen=True, slots=True)
class Event(Generic[R]):
    """One change. `resource` is the new state (the last one for DELETED; None for RELIST)."""

    type: EventType
    version: int
    resource: R | None


class Store(Protocol):
    """Get, list, create, update with a resource version, delete, watch.

    `create` raises AlreadyExists; `update` raises NotFound, and Conflict when `resource.meta.version` is not the
    stored one; both return the resource with its new version. `delete` of something absent is no error, with
    `version` given it raises Conflict on a mismatch. A store that cannot be reached raises Unavailable.
    """

    async def get(self, kind: type[R], name: str) -> R | None: ...

    async def list(self, kind: type[R]) -> list[R]: ...

    async def create(self, resource: R) -> R: ...

    async def update(self, resource: R) -> R: ...

    async def delete(self, kind: type[R], name: str, version: int | None = None) -> None: ...

    def watch(self, kind: type[R], since: int | None = None) -> AsyncIterator[Event[R]]:
        """Changes of `kind` after version `since` (None: from now on), in order, never blocking a writer."""
        ...

    async def close(self) -> None: ...
