"""Following one kind of resource: everybody who waits for a change of one of them is told by a single watch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Generic

from agent.store.interface import EventType, R, Store
from agent.tasks.background import Background


class Changes(Generic[R]):
    """`on_change` is called with the name of each that there is at `start`, and of each that changes or goes."""

    def __init__(self, store: Store, kind: type[R], on_change: Callable[[str], None] = lambda name: None) -> None:
        self._store = store
        self._kind: type[R] = kind
        self._on_change = on_change
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._known: set[str] = set()
        self._background = Background()

    def start(self) -> None:
        self._background.keep(f"follow-{self._kind.__name__}", self._follow)

    async def stop(self) -> None:
        await self._background.stop()

    async def until(self, name: str, done: Callable[[R | None], bool], deadline: float) -> bool:
        """Returns true once `done` of the resource (None: there is none), false at `deadline` (time.monotonic)."""
        changed = asyncio.Event()
        self._waiting.setdefault(name, set()).add(changed)
        try:
            while True:
                changed.clear()
                if done(await self._store.get(self._kind, name)):
                    return True
                try:
                    async with asyncio.timeout(deadline - time.monotonic()):
                        await changed.wait()
                except TimeoutError:
                    return False
        finally:
            waiting = self._waiting[name]
            waiting.discard(changed)
            if not waiting:
                del self._waiting[name]

    async def _follow(self) -> None:
        events = self._store.watch(self._kind)
        await self._look_at_all()
        async for event in events:
            if event.resource is None:
                await self._look_at_all()
                continue
            name = event.resource.meta.name
            if event.type is EventType.DELETED:
                self._known.discard(name)
            else:
                self._known.add(name)
            self._tell(name)

    async def _look_at_all(self) -> None:
        before, self._known = self._known, {each.meta.name for each in await self._store.list(self._kind)}
        for name in before | self._known:
            self._tell(name)

    def _tell(self, name: str) -> None:
        for each in self._waiting.get(name, ()):
            each.set()
        self._on_change(name)
