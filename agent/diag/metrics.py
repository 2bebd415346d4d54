"""The text of `/metrics`: facts are taken in the event loop and turned into text in a thread, in an own registry.

Names follow Prometheus: base units, `_total` for counters, prefix `quarry_`. docs/operations.md lists them with the
bounds of their labels.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder

from agent.diag import families
from agent.diag.families import Facts
from agent.diag.parts import Parts
from agent.diag.readings import Reading
from agent.errors import QuarryError
from agent.model import Disk, Snapshot, Volume

FRESH_S = 1.0
"""Scrapes that come within so long of each other are answered by the same look at the agent and its target."""


class Exposition:
    """What `/metrics` answers. Scrapes take turns."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._turn = asyncio.Lock()
        self._taken_at = float("-inf")
        self._families: Sequence[Metric] = ()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Families(self))
        ProcessCollector(registry=self._registry)

    @property
    def families(self) -> Sequence[Metric]:
        """Those of the last look."""
        return self._families

    async def text(self, accept: str) -> tuple[bytes, str]:
        """The exposition in the form that the header `accept` asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        async with self._turn:
            if time.monotonic() - self._taken_at > FRESH_S:
                facts = await self._look()
                self._families = await asyncio.to_thread(families.of, self._parts, facts)
                self._taken_at = time.monotonic()
            return await asyncio.to_thread(encode, self._registry), content_type

    async def _look(self) -> Facts:
        parts = self._parts
        try:
            ready = not await parts.reasons()
            disks = [each for each in await parts.store.list(Disk) if parts.is_here(each)]
            volumes = [each for each in await parts.store.list(Volume) if parts.is_here(each)]
            snapshots = [each for each in await parts.store.list(Snapshot) if parts.is_here(each)]
            conditions = await parts.conditions(volumes) if parts.conditions is not None else ()
            dead = await parts.dead_nodes() if parts.dead_nodes is not None else {}
        except QuarryError:
            return Facts(store_answers=False)
        io = Reading()
        if parts.rpc is not None and parts.rpc.connected and parts.read_io is not None:
            io = await parts.read_io(volumes)
        abnormal = sum(each.abnormal for each in conditions)
        return Facts(disks, volumes, snapshots, abnormal, io, ready, dead_nodes=dead)


class _Families:
    """Gives the registry the families of the last look."""

    def __init__(self, exposition: Exposition) -> None:
        self._exposition = exposition

    def collect(self) -> Iterable[Metric]:
        return self._exposition.families
