"""Telling what is news of resources as they change."""

from __future__ import annotations

from collections.abc import Callable

from agent.model import Disk, Resource, Snapshot, StorageNode, Volume
from agent.store.interface import EventType, R, Store
from agent.store.through import StoreThrough
from agent.tasks.background import Background
from agent.volumes.rules.news import News, news

Tell = Callable[[Resource, News], None]


class TellingStore(StoreThrough):
    """Calls `tell` with what is news in an update of a Disk or StorageNode that was carried out."""

    def __init__(self, store: Store, tell: Tell) -> None:
        super().__init__(store)
        self._tell = tell

    async def update(self, resource: R) -> R:
        if not isinstance(resource, Disk | StorageNode):
            return await super().update(resource)
        before = await self.get(type(resource), resource.meta.name)
        after = await super().update(resource)
        if before is not None:
            for each in news(before, after):
                self._tell(after, each)
        return after


class VolumeNews:
    """Calls `tell` with what is news in a change of a Volume or Snapshot, whoever made it.

    The one that leads does this for all: whose a Volume is, no policy of the API can see, so that nodes may not tell.
    What happened while nobody led is in the status alone.
    """

    def __init__(self, store: Store, tell: Tell) -> None:
        self._store = store
        self._tell = tell
        self._background = Background()

    def start(self) -> None:
        self._background.keep("news-of-volumes", lambda: self._follow(Volume))
        self._background.keep("news-of-snapshots", lambda: self._follow(Snapshot))

    async def stop(self) -> None:
        await self._background.stop()

    async def _follow(self, kind: type[R]) -> None:
        events = self._store.watch(kind)
        known = {each.meta.name: each for each in await self._store.list(kind)}
        async for event in events:
            after = event.resource
            if after is None:
                known = {each.meta.name: each for each in await self._store.list(kind)}
            elif event.type is EventType.DELETED:
                known.pop(after.meta.name, None)
            else:
                before, known[after.meta.name] = known.get(after.meta.name), after
                for each in news(before, after) if before is not None else ():
                    self._tell(after, each)
