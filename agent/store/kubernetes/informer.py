"""Keeps a cache up to date: list, then watch with bookmarks; list again after 410, and now and then anyway."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import Any
from urllib.parse import urlencode

import msgspec

from agent.errors import FailedPrecondition, NotFound, QuarryError, Unavailable
from agent.store.interface import EventType
from agent.store.kubernetes.cache import About, Cache
from agent.store.kubernetes.connection import Connection, decode
from agent.store.kubernetes.kinds import GROUP, KINDS
from agent.store.kubernetes.refusals import Asked, Expired, refusal
from agent.tasks.background import Background

PAGE = 500
"""Objects in one answer to a list."""

RESYNC_S = 3600.0
"""Seconds after which everything is listed again though no watch failed: nothing lost stays lost."""

_WATCH_S = (300, 600)
"""After how many seconds the server is to end a watch: between these, so that not all agents come back at once."""

_PAUSE_S, _PAUSE_MAX_S = 0.1, 10.0
_SHORT_S = 1.0
"""A watch that ended so soon is a failure."""

log = logging.getLogger(__name__)


class _Object(msgspec.Struct):
    """What an event is about. `code`: of a Status, which is what an error is."""

    metadata: About
    code: int | None = None


class _Event(msgspec.Struct):
    type: str
    object: _Object


_DECODER = msgspec.json.Decoder(_Event)


class Informer:
    def __init__(self, connection: Connection, cache: Cache) -> None:
        self._connection = connection
        self._cache = cache
        self._path = KINDS[cache.kind].path
        self._asked = Asked(cache.kind)
        self._listed_at = 0.0
        self._is_current = True
        self._background = Background(pause_s=_PAUSE_S, pause_max_s=_PAUSE_MAX_S)

    async def start(self) -> None:
        """Returns when the cache holds everything. Raises FailedPrecondition where the resources are not installed."""
        try:
            await self._list()
        except NotFound as error:
            plural = f"{KINDS[self._cache.kind].plural}.{GROUP}"
            raise FailedPrecondition(f"the cluster does not know {plural}: kubectl apply -f k8s/crds") from error
        self._background.keep(f"informer-{self._cache.kind}", self._run)

    async def stop(self) -> None:
        await self._background.stop()

    async def _run(self) -> None:
        while True:
            if not self._is_current or time.monotonic() - self._listed_at > RESYNC_S:
                await self._list()
                self._is_current = True
            try:
                await self._follow()
            except Expired:
                self._is_current = False
                log.info("watching %s: version %d is forgotten, listing again", self._path, self._cache.version)
                await asyncio.sleep(_PAUSE_S)
            except QuarryError:
                raise
            except Exception:
                self._is_current = False  # a defect: what the cache has is not to be trusted
                raise

    async def _list(self) -> None:
        items: list[Any] = []
        query: dict[str, str] = {"limit": str(PAGE)}
        while True:
            answer = await self._connection.request("GET", f"{self._path}?{urlencode(query)}", self._asked)
            items += answer["items"]
            token = answer["metadata"].get("continue")
            if not token:
                break
            query["continue"] = token
        self._cache.listing(items, int(answer["metadata"]["resourceVersion"]))
        self._listed_at = time.monotonic()

    async def _follow(self) -> None:
        """One watch from where the cache stands until its end. Raises Expired, Unavailable."""
        began = time.monotonic()
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": str(self._cache.version),
            "timeoutSeconds": str(random.randint(*_WATCH_S)),  # noqa: S311 - spreads load, keeps no secret
        }
        heard = False
        async for event in self._connection.watch(f"{self._path}?{urlencode(query)}", self._asked):
            heard = True
            self._take(event)
        if not heard and time.monotonic() - began < _SHORT_S:
            raise Unavailable("the watch ended at once")

    def _take(self, event: bytes) -> None:
        about = _about(event)
        if about.type == "BOOKMARK":
            self._cache.bookmark(int(about.object.metadata.resourceVersion))
        elif about.type == "ERROR":
            raise refusal(about.object.code or 500, b"", self._asked)
        elif about.type == EventType.DELETED or not self._cache.echo(EventType(about.type), about.object.metadata):
            self._cache.event(EventType(about.type), decode(event)["object"])


def _about(event: bytes) -> _Event:
    try:
        return _DECODER.decode(event)
    except msgspec.MsgspecError as error:
        raise Unavailable(f"a watch told something that is no event: {error}") from error
