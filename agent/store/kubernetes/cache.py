"""One kind in memory: what the watch told, ahead of it our own writes, and the readers who follow.

Reads see our own writes at once. Readers of changes hear everything from the watch, in its order, ours included.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakSet

import msgspec

from agent.errors import FailedPrecondition
from agent.model import Resource
from agent.store.change import Change
from agent.store.interface import EventType
from agent.store.kubernetes import wire
from agent.store.kubernetes.wire import Held
from agent.store.watch import Watcher


class History:
    """The last changes of all kinds, for readers who ask from a version on."""

    def __init__(self, kept: int) -> None:
        self._changes: deque[Change] = deque(maxlen=kept)
        self.floor = 0
        """Changes up to this version may be forgotten."""

    def add(self, change: Change) -> None:
        if len(self._changes) == self._changes.maxlen:
            self.floor = max(self.floor, self._changes[0].version)
        self._changes.append(change)

    def after(self, kind: str, version: int) -> list[Change]:
        return [change for change in self._changes if change.kind == kind and change.version > version]


class Reader(Watcher):
    """A watcher that is not told what it could already read when it began."""

    def __init__(self, kind: str, passed: Mapping[str, int], buffer: int) -> None:
        super().__init__(kind, buffer)
        self._passed = passed

    def offer(self, change: Change) -> None:
        if change.version > self._passed.get(change.resource.meta.name, 0):
            super().offer(change)


class About(msgspec.Struct):
    """Which object at which version: the least of an object's metadata, all that has to be read to know it again."""

    resourceVersion: str = "0"  # noqa: N815 - the API's word
    name: str = ""
    uid: str = ""


class Cache:
    """`version` is how far the watch has come."""

    def __init__(self, kind: str, history: History) -> None:
        self.kind = kind
        self.version = 0
        self.listed = 0
        """Version of the last list that told more than the watch had: changes before it were not seen one by one."""
        self.readers: WeakSet[Reader] = WeakSet()
        self._history = history
        self._held: dict[str, Held] = {}
        self._unreadable: dict[str, FailedPrecondition] = {}
        self._ahead: dict[str, int] = {}
        """Versions of what we wrote or read that the watch has not come to yet."""
        self._gone: set[str] = set()
        """Uids of what we deleted and the watch has not told yet."""

    # --- reading ---------------------------------------------------------------------------------------------------

    def get(self, name: str) -> Held | None:
        """Raises FailedPrecondition for an object that this program does not understand."""
        if name in self._unreadable:
            raise self._unreadable[name]
        return self._held.get(name)

    def all(self) -> Iterable[Held]:
        """Raises FailedPrecondition when one is not understood: what is on a list must not look deleted."""
        for error in self._unreadable.values():
            raise error
        return self._held.values()

    @property
    def newest(self) -> int:
        return max(self.version, *self._ahead.values(), 0)

    @property
    def is_behind(self) -> bool:
        """Whether the watch has yet to tell what we wrote."""
        return bool(self._ahead or self._gone)

    def passed(self, since: int | None) -> Mapping[str, int]:
        """What a reader who begins now knows already, ahead of the watch."""
        return {name: version for name, version in self._ahead.items() if since is None or version <= since}

    # --- our own writes and reads ----------------------------------------------------------------------------------

    def read(self, item: Mapping[str, Any]) -> Held:
        """An object of an answer; the watch may have told of it before. Raises FailedPrecondition like `wire.read`."""
        metadata = item["metadata"]
        known = self._known(metadata["name"], metadata.get("uid", ""), int(metadata["resourceVersion"]))
        return known or wire.read(self.kind, item)

    def _known(self, name: str, uid: str, version: int) -> Held | None:
        known = self._held.get(name)
        return known if known is not None and (known.version, known.uid) == (version, uid) else None

    def learn(self, held: Held) -> None:
        """Takes over an object from an answer, unless something newer is known."""
        name = held.resource.meta.name
        known = self._held.get(name)
        if held.uid in self._gone or held.version <= max(self.version, known.version if known else 0):
            return
        self._held[name] = held
        self._ahead[name] = held.version
        self._unreadable.pop(name, None)

    def forget(self, name: str, uid: str) -> None:
        """The object is gone from the API."""
        known = self._held.get(name)
        if known is not None and known.uid == uid:
            del self._held[name]
            self._ahead.pop(name, None)
            self._gone.add(uid)

    # --- the watch -------------------------------------------------------------------------------------------------

    def listing(self, items: Iterable[Mapping[str, Any]], version: int) -> None:
        """Takes over a complete list. Readers list again if it tells anything they were not told."""
        was_behind = self.is_behind
        found: dict[str, Held] = {}
        unreadable: dict[str, FailedPrecondition] = {}
        seen: set[str] = set()
        for item in items:
            name, uid = item["metadata"]["name"], item["metadata"].get("uid", "")
            seen.add(uid)
            try:
                if uid not in self._gone:
                    found[name] = wire.read(self.kind, item)
            except FailedPrecondition as error:
                unreadable[name] = error
        for name, ahead in list(self._ahead.items()):
            if ahead > version and name in self._held:
                found[name] = self._held[name]
        is_news = _versions(found) != _versions(self._held) or unreadable.keys() != self._unreadable.keys()
        self._held, self._unreadable = found, unreadable
        self._gone &= seen
        self._advance(version)
        if is_news or was_behind or not self.listed:
            self.listed = version
            for reader in self.readers:
                reader.relist(version)

    def echo(self, event: EventType, about: About) -> bool:
        """Takes over a change that is known already, as our own writes are by their answers; false if it is not."""
        known = self._known(about.name, about.uid, int(about.resourceVersion))
        if known is not None:
            self._told(known.version, event, known.resource)
        return known is not None

    def event(self, event: EventType, item: Mapping[str, Any]) -> None:
        """Takes over one change that the watch tells."""
        metadata = item["metadata"]
        name, uid, version = metadata["name"], metadata.get("uid", ""), int(metadata["resourceVersion"])
        try:
            held = wire.read(self.kind, item)
        except FailedPrecondition as error:
            self._held.pop(name, None)
            if event is not EventType.DELETED:
                self._unreadable[name] = error
            self._advance(version)
            for reader in self.readers:
                reader.relist(version)
            return
        known = self._held.get(name)
        if event is EventType.DELETED:
            self._gone.discard(uid)
            if known is not None and known.uid == uid:
                del self._held[name]
        elif uid not in self._gone and (known is None or known.version < version):
            self._held[name] = held
        self._unreadable.pop(name, None)
        self._told(version, event, held.resource)

    def _told(self, version: int, event: EventType, resource: Resource) -> None:
        self._advance(version)
        change = Change(version, event, resource, b"")
        self._history.add(change)
        for reader in self.readers:
            reader.offer(change)

    def bookmark(self, version: int) -> None:
        self._advance(version)

    def _advance(self, version: int) -> None:
        self.version = max(self.version, version)
        if self._ahead:
            self._ahead = {name: ahead for name, ahead in self._ahead.items() if ahead > self.version}


def _versions(held: Mapping[str, Held]) -> Mapping[str, int]:
    return {name: each.version for name, each in held.items()}
