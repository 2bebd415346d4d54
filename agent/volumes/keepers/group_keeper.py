"""Keeps groups of snapshots right in the background: those that a crash cut off, and deletions that it did."""

from __future__ import annotations

import logging

from agent.errors import Busy, QuarryError
from agent.model import SnapshotGroup, SnapshotPhase
from agent.store.interface import Store
from agent.tasks.work import Work
from agent.volumes.service.groups import GroupService

log = logging.getLogger(__name__)


class GroupKeeper:
    """A companion of the target's keeper (agent.volumes.target.bringup)."""

    def __init__(self, store: Store, groups: GroupService) -> None:
        self._store = store
        self._groups = groups
        self._work = Work("group snapshot", groups.tidy, parallel=1)

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        await self._work.stop()

    async def brought_up(self) -> None:
        """Hosts first: they may have been held back since the agent was killed."""
        for group in await self._store.list(SnapshotGroup):
            if group.status.phase is not SnapshotPhase.PENDING:
                continue
            try:
                await self._groups.resume(group)
            except Busy:
                continue  # a caller is back already: the first thing it does is to let them go on
            except QuarryError as error:
                log.warning("hosts of group snapshot %s may still be held back: %s", group.meta.name, error)

    async def audited(self) -> None:
        """Have those looked after that nobody is working on."""
        self._work.stir(
            *(
                each.meta.name
                for each in await self._store.list(SnapshotGroup)
                if each.meta.deleting or each.status.phase is SnapshotPhase.PENDING
            )
        )
