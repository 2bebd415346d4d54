"""Keeps an inventory true: a burst of events about one disk becomes one look, a periodic comparison heals the rest."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from agent.disks.inventory import Change, Inventory
from agent.disks.source import Event, Source, Usage
from agent.errors import QuarryError
from agent.tasks.failures import FAILURES

log = logging.getLogger(__name__)

SETTLE_S = 0.25
"""From the first event of a disk to the look at it: mkfs, partitioning and hotplug cause bursts of them."""

RESCAN_S = 30.0
"""Between comparisons of all facts: how late a change is seen whose event was lost."""


class Watch:
    """Follows a `source` into an `inventory`, until its `run` is cancelled. `looks` counts devices looked at.

    `discovered` is set once everything that was there in the beginning has been looked at.

    A device that does not answer delays only news of itself.
    """

    def __init__(
        self, source: Source, inventory: Inventory, *, settle_s: float = SETTLE_S, rescan_s: float = RESCAN_S
    ) -> None:
        self._source = source
        self.inventory = inventory
        self._settle_s = settle_s
        self._rescan_s = rescan_s
        self._wake = asyncio.Event()
        self._dirty = set[str]()
        self._compare = False
        self._looking = set[str]()
        self._ready: Callable[[], None] | None = None
        self.discovered = asyncio.Event()
        self.looks = 0

    async def run(self, report: Callable[[Sequence[Change]], None], ready: Callable[[], None] | None = None) -> None:
        """Look at everything, then follow. `report` gets each set of changes that belong together.

        `ready` is called once, when all that was there in the beginning has been looked at.
        """
        self._ready = ready
        end = self._source.subscribe(self._notice)  # first, so that nothing happens unseen between the two
        try:
            async with asyncio.TaskGroup() as group:
                self._compare = True
                await self._begin(group, report)
                self._tell_ready()
                group.create_task(self._rescan_regularly())
                while True:
                    await self._wake.wait()
                    await asyncio.sleep(self._settle_s)  # what belongs to the same burst comes now
                    self._wake.clear()
                    await self._begin(group, report)
        finally:
            end()

    def _notice(self, event: Event) -> None:
        if event.disk:
            self._dirty.add(event.disk)
        else:
            log.warning("events of block devices were lost (%s): looking at all of them", event.action)
            self._compare = True
        self._wake.set()

    async def _rescan_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._rescan_s)
            self._compare = True
            self._wake.set()

    async def _begin(self, group: asyncio.TaskGroup, report: Callable[[Sequence[Change]], None]) -> None:
        """Start looks at what needs one. Those in flight are left alone: what happened meanwhile is looked at after."""
        usage = await self.inventory.usage()
        if self._compare:
            self._compare = False
            differences = await self.inventory.differing(usage)
            self._dirty.update(differences.names)
            if differences.changes:
                report(differences.changes)
        ready = self._dirty - self._looking
        self._dirty -= ready
        self._looking |= ready
        for name in sorted(ready):
            self.looks += 1
            group.create_task(self._look(name, usage, report))

    async def _look(self, name: str, usage: Usage, report: Callable[[Sequence[Change]], None]) -> None:
        changes: Sequence[Change] = ()
        try:
            changes = await self.inventory.look(name, usage)
        except (QuarryError, OSError) as error:
            # The next comparison tries again, since the device is still not known as it is.
            log.error("disk %s could not be looked at: %s", name, error)
        except Exception:  # a defect that one device meets must not keep all others from being followed
            FAILURES.counts["disks-look"] += 1
            log.exception("disk %s could not be looked at", name)
        finally:
            self._looking.discard(name)
        if name in self._dirty:
            self._wake.set()
        if changes:
            report(changes)
        self._tell_ready()

    def _tell_ready(self) -> None:
        if self._looking:
            return
        self.discovered.set()
        if self._ready is not None:
            self._ready()
            self._ready = None
