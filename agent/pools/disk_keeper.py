"""Keeps the Disks of this node true: what is seen of them is recorded, what is wanted of them is done.

Level-triggered: an event of the machine, of the store or of the target only says which disk to look at.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from agent.config.settings import DiskSettings
from agent.disks import files, rules
from agent.disks.eligibility import Code
from agent.disks.inventory import Change, Known
from agent.disks.watch import Watch
from agent.model import Disk, DiskPhase, DiskSpec, Meta
from agent.pools.disk_driver import DRIVER, DiskDrivers
from agent.pools.disk_records import DiskRecords
from agent.pools.pools import Pools, is_in_service
from agent.pools.why import Refused, Why
from agent.store.interface import EventType, Store
from agent.tasks.background import Background
from agent.tasks.work import Work

log = logging.getLogger(__name__)

RETRY_MAX_S = 30.0

_NO_DISK = {Code.KIND, Code.PATH, Code.NETWORK, Code.OURS}
"""What is refused for one of these is no disk of this machine, and gets no record."""


class DiskKeeper:
    """Follows the disks of the machine and what is wanted of them.

    `is_ready`: whether the target serves; `audit_soon` is called when a pool came or went.
    """

    def __init__(
        self,
        store: Store,
        records: DiskRecords,
        watch: Watch,
        pools: Pools,
        drivers: DiskDrivers,
        settings: DiskSettings,
    ) -> None:
        self._store = store
        self._records = records
        self._inventory = watch.inventory
        self._watch = watch
        self._pools = pools
        self._drivers = drivers
        self._settings = settings
        self._specs: dict[str, DiskSpec] = {}
        # Without a limit: a disk that does not answer holds up nobody else.
        self._work = Work("disk", self._settle, parallel=0, retry_max_s=RETRY_MAX_S)
        self._served: dict[str, tuple[str, int, int]] = {}
        """How each disk in service was reached when its pool came up: path, DISKSEQ, size."""
        self._background = Background()
        self.prepared = asyncio.Event()
        self.prepared.set()
        """Not set while disks are on their way to other drivers: nothing is done about any before."""
        self.is_ready: Callable[[], bool] = lambda: False
        self.audit_soon: Callable[[], None] = lambda: None

    # --- Companion ---

    async def start(self) -> None:
        self._background.keep("disks-watch", lambda: self._watch.run(self._report, self._first_look_done))
        self._background.keep("disks-specs", self._follow_store)

    async def stop(self) -> None:
        await self._background.stop()
        await self._work.stop()

    async def audited(self) -> None:
        """A target is there, new or looked at again: those that are not served as they should be get another try."""
        if self._watch.discovered.is_set():
            self._work.stir(*(disk.meta.name for disk in await self._records.list()))

    # --- following ---

    def _report(self, changes: Sequence[Change]) -> None:
        self._work.stir(*(change.known.identity for change in changes if change.known.identity))

    def _first_look_done(self) -> None:
        log.info("%d disks found", len(self._inventory.known))
        self._work.stir(*self._specs)
        if self.is_ready():
            self.audit_soon()  # what lies on disks that are not there could not be judged before

    async def _follow_store(self) -> None:
        events = self._store.watch(Disk)
        await self._look_at_all()
        async for event in events:
            if event.resource is None:
                await self._look_at_all()
            else:
                self._notice(event.resource, is_gone=event.type is EventType.DELETED)

    async def _look_at_all(self) -> None:
        """All that may be other than it was known: those that went while nobody followed, too."""
        before, self._specs = self._specs, {each.meta.name: each.spec for each in await self._records.list()}
        self._work.stir(*(name for name in before if name not in self._specs), *self._specs)

    def _notice(self, disk: Disk, *, is_gone: bool) -> None:
        name = disk.meta.name
        if is_gone or disk.status.node != self._records.node:  # nobody has it: it may be here
            self._specs.pop(name, None)
            self._work.stir(name)
        elif self._specs.get(name) != disk.spec:
            self._specs[name] = disk.spec
            self._work.stir(name)

    # --- settling ---

    async def _settle(self, name: str) -> None:
        """Compare one disk's record with what is there, and close the difference."""
        if files.is_disk_id(name):  # by its name: its status, which tells its kind, may have been emptied
            return
        await self.prepared.wait()
        disk, found = await self._records.get(name), self._inventory.find(name)
        if disk is not None and self._is_others(disk):
            if not found:
                return
            if disk.status.phase is not DiskPhase.MISSING:
                log.info(
                    "disk %s is left alone: it is on record as node %s's; if that has it no more, delete the Disk",
                    name,
                    disk.status.node,
                )
                return
        if not found:
            if disk is not None and self._watch.discovered.is_set():
                await self._absent(disk)
            return
        # Of several that say to be this disk none is taken; what is in service stays what it was.
        path = disk.status.path if disk else ""
        known = next((each for each in found if each.status.path == path), found[0])
        if disk is None:
            if known.twins or any(reason.code in _NO_DISK for reason in known.reasons):
                return
            disk = await self._records.create(Disk(meta=Meta(name), status=known.status))
        disk = await self._records.change(disk, lambda now: _observed(now, known))
        if name in self._served and not disk.status.pool.uuid:  # somebody has deleted its record: it stays in service
            disk = await self._records.change(disk, _claimed)
        await self._do_what_is_wanted(disk, known)

    def _is_others(self, disk: Disk) -> bool:
        """Whether another node has it, or misses it."""
        return disk.status.node not in ("", self._records.node)

    async def _absent(self, disk: Disk) -> None:
        self._served.pop(disk.meta.name, None)
        if disk.spec == DiskSpec() and not disk.status.pool.uuid:
            await self._records.forget(disk)
            self._specs.pop(disk.meta.name, None)
            return
        was_served = self._pools.is_served(disk)
        try:
            await self._pools.lose(disk, "it is not in this machine")
        finally:
            if was_served:
                self.audit_soon()

    async def _do_what_is_wanted(self, disk: Disk, known: Known) -> None:
        if disk.spec.claimed is None and disk.status.eligible and rules.claims(self._settings, disk):
            log.info("disk %s (%s) is claimed by a rule", disk.meta.name, disk.status.path)
            disk = await self._records.change(disk, _claimed)
        if await self._drivers.change(disk, known):
            return  # it is another device now, of which there is news
        if not self.is_ready():
            return  # `audited` comes when it is
        if is_in_service(disk):
            try:
                await self._serve(disk, known)
            except Refused as error:
                if error.why is not Why.POOL_LOST or disk.spec.claimed:
                    raise
                await self._pools.give_up(disk)
                return
        if disk.status.phase is DiskPhase.RELEASING or (not disk.spec.claimed and disk.status.pool.uuid):
            await self._release(disk)

    async def _serve(self, disk: Disk, known: Known) -> None:
        reached = (known.status.path, known.status.disk_sequence, known.status.size_bytes)
        was_served = self._pools.is_served(disk)
        if was_served and self._served.get(disk.meta.name) == reached and disk.status.phase is DiskPhase.READY:
            self._pools.follow(disk)
            return
        self._served.pop(disk.meta.name, None)
        try:
            await self._pools.ensure(disk)
            self._served[disk.meta.name] = reached
        finally:
            if was_served != self._pools.is_served(disk):
                self.audit_soon()

    async def _release(self, disk: Disk) -> None:
        await self._pools.release(disk)
        self._served.pop(disk.meta.name, None)
        if (found := self._inventory.find(disk.meta.name)) and (fresh := await self._inventory.verdict(found[0].name)):
            await self._records.change(disk, lambda now: _observed(now, fresh))
        self.audit_soon()
        self._work.stir(disk.meta.name)


def _claimed(disk: Disk) -> Disk:
    return replace(disk, spec=replace(disk.spec, claimed=True)) if disk.spec.claimed is None else disk


def _observed(disk: Disk, known: Known) -> Disk:
    """The record with what is seen now. Phase, pool and conditions of a disk in service are not the eye's to judge."""
    now = disk.status
    if now.node not in ("", known.status.node):
        # Taken over, and at once no longer lost: of several nodes that see it one has it.
        now = replace(now, phase=DiskPhase.AVAILABLE, message="")
    status = replace(known.status, phase=now.phase, message=now.message, pool=now.pool, conditions=now.conditions)
    if now.pool.uuid and known.pool is not None and known.pool.uuid == now.pool.uuid:
        # What is recognised beside its own pool are the data of its volumes.
        others = [reason for reason in known.reasons if reason.code is not Code.CONTENT]
        status = replace(status, eligible=not others, reasons=tuple(reason.text for reason in others))
    if not disk.spec.claimed and not now.pool.uuid:
        told = tuple(each for each in now.conditions if each.type == DRIVER)
        status = replace(status, phase=known.status.phase, message="", conditions=told)
    return replace(disk, status=status)
