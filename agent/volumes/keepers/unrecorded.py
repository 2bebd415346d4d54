"""Data without a record on this node's disks: named on the Disk, and adopted or discarded when a person says so there.

Records are written first and removed last, so such data mean that records were lost: a finalizer taken off by hand, a
restored backup, a node that was forgotten and came back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from agent.errors import Busy, Conflict, NotFound, QuarryError
from agent.model import Condition, ConditionStatus, Disk, DiskPhase, Provisioning, Snapshot, UnrecordedData, Volume
from agent.pools.disk_conditions import with_condition, without_condition
from agent.pools.disk_records import DiskRecords
from agent.spdk import bdev
from agent.spdk.client import Rpc
from agent.store.following import Changes
from agent.store.interface import Store
from agent.tasks.guard import VolumeGuard
from agent.tasks.work import Work
from agent.volumes.rules.names import is_volume_id
from agent.volumes.service.snapshots import guard_key
from agent.volumes.target.observed import Observed

log = logging.getLogger(__name__)

UNRECORDED = "Unrecorded"
"""Condition of a Disk that holds data of ours without a record."""

TOLD_MAX = 512
"""How many are named on one disk; the others are when these are settled."""

_NAMED = 10

Adopt = Callable[[str, Disk, Mapping[str, str]], Awaitable[None]]
"""Makes a record of the data of that name on that disk; what each lvol stands on is given too."""


class UnrecordedKeeper:
    """Names data without a record on their disk, and does with them what somebody says.

    `records` is what is recorded here: volumes, snapshots, disks. `adopt` makes records; None: the controller does.
    `destroy` deletes data, by disk and name. `audit_soon` is called when somebody has said what to do.
    """

    def __init__(
        self,
        rpc: Rpc,
        store: Store,
        records: DiskRecords,
        guard: VolumeGuard,
        adopt: Adopt | None,
        audit_soon: Callable[[], None],
        destroy: Callable[[str, str], Awaitable[None]],
    ) -> None:
        self._rpc = rpc
        self._store = store
        self._records = records
        self._guard = guard
        self._adopt = adopt
        self._audit_soon = audit_soon
        self._destroy = destroy
        self._wishes = Work("wishes about disk", self._look_at_wishes)
        self._changes = Changes(store, Disk, self._wishes.stir)

    async def start(self) -> None:
        self._changes.start()

    async def stop(self) -> None:
        await self._changes.stop()
        await self._wishes.stop()

    async def look(self, observed: Observed) -> None:
        """What is not recorded has to be known before anything new is made under its name."""
        for disk in await self._records.list():
            if disk.status.phase is DiskPhase.READY:
                try:
                    await self._look_at(disk, observed)
                except (Conflict, NotFound) as error:
                    log.info("data without a record on disk %s: %s", disk.meta.name, error)

    async def _look_at_wishes(self, name: str) -> None:
        disk = await self._records.get(name)
        if disk is not None and disk.status.node == self._records.node and (disk.spec.adopt or disk.spec.discard):
            self._audit_soon()

    async def _look_at(self, disk: Disk, observed: Observed) -> None:
        found = await self._found(disk, observed)
        names = {each.name for each in found}
        for name in sorted(names.intersection(disk.spec.discard), key=lambda name: (not is_volume_id(name), name)):
            await self._discard(disk, name)
        if self._adopt is not None:
            for name in sorted(names.intersection(disk.spec.adopt), key=lambda name: (is_volume_id(name), name)):
                await self._adopt(name, disk, observed.parents)
        if names.intersection((*disk.spec.discard, *disk.spec.adopt)):
            found = await self._found(disk, observed)
        told = await self._records.change(disk, lambda now: _with(now, found))
        if told.status.unrecorded != disk.status.unrecorded:
            log.error("disk %s: %s", disk.meta.name, _message(found))

    async def _found(self, disk: Disk, observed: Observed) -> tuple[UnrecordedData, ...]:
        known = {each.meta.name for each in await self._store.list(Volume)}
        known |= {each.meta.name for each in await self._store.list(Snapshot)}
        found = []
        here = sorted(name for name, pool in observed.places.items() if pool == disk.pool_name and name not in known)
        for name in here[:TOLD_MAX]:
            device = await bdev.get(self._rpc, f"{disk.pool_name}/{name}")
            if device is None or device.lvol is None or await self._is_recorded(name):
                continue  # it was deleted since, or made
            kind = Provisioning.THIN if device.lvol.thin_provision else Provisioning.THICK
            found.append(UnrecordedData(name, device.size_bytes, device.uuid, kind, observed.parents.get(name, "")))
        return tuple(found)

    async def _is_recorded(self, name: str) -> bool:
        """Here: a volume that was given up is recorded, but nowhere."""
        known: list[Volume] | list[Snapshot]
        known = await self._store.list(Volume) if is_volume_id(name) else await self._store.list(Snapshot)
        return any(each.meta.name == name for each in known)

    async def _discard(self, disk: Disk, name: str) -> None:
        try:
            async with self._guard.hold(name if is_volume_id(name) else guard_key(name)):
                if not await self._is_recorded(name):
                    log.warning("data %s on disk %s are discarded", name, disk.meta.name)
                    await self._destroy(disk.meta.name, name)
        except Busy as error:
            log.info("%s is discarded with the next look: %s", name, error)
        except QuarryError as error:
            log.warning("%s on disk %s is not discarded: %s", name, disk.meta.name, error)


def _with(disk: Disk, found: tuple[UnrecordedData, ...]) -> Disk:
    """`disk` with what was found told, and without wishes about what is not there any more."""
    names = {each.name for each in found}
    spec = replace(
        disk.spec,
        adopt=tuple(each for each in disk.spec.adopt if each in names),
        discard=tuple(each for each in disk.spec.discard if each in names),
    )
    conditions = without_condition(disk.status.conditions, UNRECORDED)
    if found:
        new = Condition(UNRECORDED, ConditionStatus.TRUE, "DataWithoutRecord", _message(found), time.time())
        conditions = with_condition(disk.status.conditions, new)
    return replace(disk, spec=spec, status=replace(disk.status, unrecorded=found, conditions=conditions))


def _message(found: tuple[UnrecordedData, ...]) -> str:
    if not found:
        return "all data on it are recorded again"
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    names = ", ".join(each.name for each in found[:_NAMED])
    return (
        f"{len(found)} volumes and snapshots on it have no record: {names}{more}. They keep their room. "
        "Bring them back (quarry volumes adopt NAME) or destroy them (quarry volumes discard NAME)"
    )
