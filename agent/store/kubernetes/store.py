"""The store of a cluster: custom resources, reads from memory, writes conditional on what was read.

A resource is written in up to three requests: spec, then status, then (with `meta.deleting` set) its deletion. Each of
them leaves something that is true: what is wished comes first and is settled again whatever became of the rest.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from agent.errors import AlreadyExists, Conflict, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from agent.model import Resource
from agent.store.interface import Event, EventType, R
from agent.store.kubernetes import wire
from agent.store.kubernetes.cache import Cache, History, Reader
from agent.store.kubernetes.connection import Connection, connect
from agent.store.kubernetes.informer import Informer
from agent.store.kubernetes.kinds import FINALIZER, KINDS
from agent.store.kubernetes.wire import Held
from agent.store.kubernetes.writes import Writes
from agent.store.limits import BUFFER_EVENTS, KEPT_CHANGES

_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
"""DNS subdomains: the names the API takes."""

ALL_KINDS: Sequence[type[Resource]] = tuple(kind.type for kind in KINDS.values())

_TRIES = 8
"""How often something is written again after others came between whose changes do not matter to it."""

_LAST_EVENTS_S = 5.0
"""How long `close` waits for the watches to tell our last writes."""

log = logging.getLogger(__name__)


async def open_kubernetes(
    kubeconfig: Path | None = None,
    *,
    kinds: Sequence[type[Resource]] = ALL_KINDS,
    buffer_events: int = BUFFER_EVENTS,
    kept_changes: int = KEPT_CHANGES,
) -> KubernetesStore:
    """Lists `kinds` and follows them; others cannot be used. See `connection.connect` for how the API is found.

    Raises FailedPrecondition without a configuration, installed resources or permission, Unavailable.
    """
    connection = await connect(kubeconfig)
    store = KubernetesStore(connection, kinds, buffer_events, kept_changes)
    try:
        await store.start()
    except BaseException:
        await store.abandon()
        raise
    return store


class KubernetesStore:
    """Implements `agent.store.interface.Store`. Used from the event loop it was opened in.

    Others' writes are seen when the watch tells them, our own at once. A write whose caller is cancelled may still
    happen; one whose answer is lost raises Unavailable or DeadlineExceeded and may have happened.
    """

    def __init__(
        self, connection: Connection, kinds: Sequence[type[Resource]], buffer_events: int, kept_changes: int
    ) -> None:
        self._connection = connection
        self._writes = Writes(connection, lambda kind, item: self._caches[kind].read(item))
        self._history = History(kept_changes)
        self._buffer_events = buffer_events
        self._caches = {kind.__name__: Cache(kind.__name__, self._history) for kind in kinds}
        self._informers = [Informer(connection, cache) for cache in self._caches.values()]
        self.writes: Counter[tuple[str, str]] = Counter()
        """Writes that were carried out, by kind and what was done (ADDED, MODIFIED, DELETED)."""
        self._closed = False
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self) -> None:
        outcomes = await asyncio.gather(*(each.start() for each in self._informers), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    @property
    def connection(self) -> Connection:
        """For what is no resource of ours: Leases, Nodes."""
        return self._connection

    def uid_of(self, kind: str, name: str) -> str:
        """What the API calls the object, apart from any other of that name; empty: it is not known."""
        held = self._caches[kind].get(name)
        return held.uid if held is not None else ""

    @property
    def requests(self) -> int:
        """Requests sent to the API so far."""
        return self._connection.sent.total()

    # --- reading ---------------------------------------------------------------------------------------------------

    async def get(self, kind: type[R], name: str) -> R | None:
        held = self._cache(kind).get(name)
        return None if held is None else cast("R", held.resource)

    async def list(self, kind: type[R]) -> list[R]:
        return [cast("R", held.resource) for held in self._cache(kind).all()]

    def watch(self, kind: type[R], since: int | None = None) -> AsyncIterator[Event[R]]:
        """Changes of `kind` after version `since` (None: from this call on). Raises Unavailable."""
        cache = self._cache(kind)
        reader = Reader(kind.__name__, cache.passed(since), self._buffer_events)
        if since is not None:
            newest = max(each.newest for each in self._caches.values())
            if since > newest or since < max(cache.listed, self._history.floor):
                reader.relist(cache.version)
            for change in self._history.after(kind.__name__, since):
                reader.offer(change)
        cache.readers.add(reader)
        return reader

    # --- writing ---------------------------------------------------------------------------------------------------

    async def create(self, resource: R) -> R:
        """`created_at` is the API's. Raises InvalidArgument for what the resource's schema does not allow."""
        wire.check(resource)
        if not _NAME.fullmatch(resource.meta.name):
            raise InvalidArgument("name", f"{resource.meta.name[:80]!r} is no name of a Kubernetes object")
        with self._writing(type(resource).__name__) as cache:
            try:
                held = await self._writes.create(resource)
            except AlreadyExists:
                await self._look(cache, resource.meta.name)
                raise
            cache.learn(held)
            self.writes[cache.kind, EventType.ADDED.value] += 1
            return cast("R", (await self._rest(cache, held, resource)).resource)

    async def update(self, resource: R) -> R:
        wire.check(resource)
        with self._writing(type(resource).__name__) as cache:
            held = await self._as_read(cache, resource)
            try:
                if _is_spec_written(held, resource):
                    held = await self._writes.change_spec(held, resource)
                cache.learn(held)
                self.writes[cache.kind, EventType.MODIFIED.value] += 1
                return cast("R", (await self._rest(cache, held, resource)).resource)
            except (Conflict, NotFound):
                await self._look(cache, resource.meta.name)
                raise

    async def delete(self, kind: type[R], name: str, version: int | None = None) -> None:
        """Marks the object as deleting unless it is, then takes our finalizer off; others' may keep it for a while."""
        with self._writing(kind.__name__) as cache:
            for _ in range(_TRIES):
                held = cache.get(name) or await self._look(cache, name)
                if held is not None and version is not None and held.version < version:
                    held = await self._look(cache, name)
                if held is None:
                    return None
                if version is not None and held.version != version:
                    raise Conflict(kind.__name__, name, version)
                try:
                    return await self._delete(cache, held, version)
                except NotFound:
                    return cache.forget(name, held.uid)
                except Conflict:
                    await self._look(cache, name)
                    if version is not None:
                        raise
            raise Unavailable(f"{kind.__name__} {name!r} changes too often to be deleted")

    async def protect(self) -> None:
        """Put our finalizer back on everything with data from which somebody took it: else it could go before them."""
        for kind in KINDS.values():
            if not kind.has_data or kind.name not in self._caches:
                continue
            for held in self._caches[kind.name].all():
                if FINALIZER in held.finalizers or held.resource.meta.deleting:
                    continue
                with self._writing(kind.name) as cache:
                    try:
                        cache.learn(await self._writes.protect(held))
                    except (Conflict, NotFound):
                        continue  # it changed meanwhile: the next time
                log.warning("%s %s was without our finalizer, which is back", kind.name, held.resource.meta.name)

    async def _delete(self, cache: Cache, held: Held, version: int | None) -> None:
        name, marked = held.resource.meta.name, held if held.resource.meta.deleting else None
        if marked is None:
            marked = await self._writes.mark(held, version)
        if marked is not None:
            cache.learn(marked)
            if FINALIZER in marked.finalizers:
                await self._writes.release(marked)
            self.writes[cache.kind, EventType.DELETED.value] += 1
            others = [each for each in marked.finalizers if each != FINALIZER]
            if others:
                log.warning("%s %s stays until others let go of it: %s", cache.kind, name, ", ".join(others))
                await self._look(cache, name)
                return
        cache.forget(name, held.uid)

    async def _as_read(self, cache: Cache, resource: Resource) -> Held:
        """What the API holds, if it is still what `resource` was made from. Raises NotFound, Conflict."""
        kind, meta = cache.kind, resource.meta
        held = cache.get(meta.name)
        if held is None or held.version < meta.version:
            held = await self._look(cache, meta.name) if _NAME.fullmatch(meta.name) else None
        if held is None:
            raise NotFound(kind, meta.name)
        if held.version != meta.version:
            raise Conflict(kind, meta.name, meta.version)
        if held.resource.meta.deleting and not meta.deleting:
            raise FailedPrecondition(f"{kind} {meta.name!r} is being deleted, which cannot be taken back")
        return held

    async def _rest(self, cache: Cache, held: Held, after: Resource) -> Held:
        """Status and deletion of `after`, on top of the spec that was written."""
        for _ in range(_TRIES):
            if not _differ(held, after, "status"):
                break
            try:
                held = await self._writes.change_status(held, after)
                cache.learn(held)
                break
            except Conflict:
                held = await self._unless_touched(cache, held, after)
        if after.meta.deleting and not held.resource.meta.deleting:
            marked = await self._writes.mark(held, held.version)
            if marked is None:
                cache.forget(after.meta.name, held.uid)
                raise NotFound(cache.kind, after.meta.name)
            cache.learn(marked)
            return marked
        return held

    async def _unless_touched(self, cache: Cache, held: Held, after: Resource) -> Held:
        """The object as it is now, if nothing of ours changed (only labels, say). Raises Conflict, NotFound."""
        now = await self._look(cache, after.meta.name)
        if now is None or now.uid != held.uid:
            raise NotFound(cache.kind, after.meta.name)
        before, found = held.resource, now.resource
        if (before.spec, before.status, before.meta.deleting) != (found.spec, found.status, found.meta.deleting):
            raise Conflict(cache.kind, after.meta.name, after.meta.version)
        return now

    async def _look(self, cache: Cache, name: str) -> Held | None:
        """The object as the API has it now, also for later reads."""
        if not _NAME.fullmatch(name):
            return None
        known = cache.get(name)
        held = await self._writes.read(cache.kind, name)
        if held is not None:
            cache.learn(held)
        elif known is not None:
            cache.forget(name, known.uid)
        return held

    # --- the end ---------------------------------------------------------------------------------------------------

    def _cache(self, kind: type[R]) -> Cache:
        if self._closed:
            raise self._closed_error()
        return self._caches[kind.__name__]

    @contextmanager
    def _writing(self, kind: str) -> Iterator[Cache]:
        if self._closed:
            raise self._closed_error()
        self._in_flight += 1
        self._idle.clear()
        try:
            yield self._caches[kind]
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    def _closed_error(self) -> Unavailable:
        return Unavailable("the store of the cluster is closed")

    async def close(self) -> None:
        """Finishes the writes under way, waits for a moment until watches have told them, ends the watches."""
        if self._closed:
            return
        self._closed = True
        await self._idle.wait()
        deadline = asyncio.get_running_loop().time() + _LAST_EVENTS_S
        watched = [cache for cache in self._caches.values() if cache.readers]
        while any(cache.is_behind for cache in watched) and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - once in a life
            await asyncio.sleep(0.01)
        await self.abandon()

    async def abandon(self) -> None:
        """Ends everything at once."""
        self._closed = True
        for informer in self._informers:
            await informer.stop()
        await self._connection.close()
        for cache in self._caches.values():
            for reader in cache.readers:
                reader.end()


def _is_spec_written(held: Held, after: Resource) -> bool:
    """Also when nothing is to be written, so that the API says whether `after` was made from what it has."""
    if _differ(held, after, "spec"):
        return True
    if after.meta.deleting and not held.resource.meta.deleting:
        return FINALIZER not in held.finalizers
    return not _differ(held, after, "status")


def _differ(held: Held, after: Resource, part: str) -> bool:
    return bool(getattr(held.resource, part) != getattr(after, part))
