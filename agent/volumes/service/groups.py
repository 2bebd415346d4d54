"""Groups of snapshots: several volumes at one point in time, made and deleted together.

The record of the group comes first and lists what is about to exist; until it says READY all of that is provisional.
One that was cut off is taken back, never completed: what was cut at another time is of no use to it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

from agent.errors import AlreadyExists, Busy, InvalidArgument, NotFound, QuarryError
from agent.model import Meta, Snapshot, SnapshotGroup, SnapshotGroupSpec, SnapshotPhase, Volume
from agent.store.interface import Store
from agent.tasks.operations import Operations
from agent.volumes.rules.members import Members
from agent.volumes.rules.names import group_id, is_group_id, member_name
from agent.volumes.rules.settling import Pauses, SnapshotCutter
from agent.volumes.service.lineage import Lineage
from agent.volumes.service.snapshot_records import SnapshotRecords
from agent.volumes.service.snapshots import guard_key


class GroupService:
    """Group operations; raises only what agent.errors defines. One operation per group at a time."""

    def __init__(
        self,
        store: Store,
        records: SnapshotRecords,
        cutter: SnapshotCutter,
        lineage: Lineage,
        operations: Operations,
        pauses: Pauses,
    ) -> None:
        self._store = store
        self._records = records
        self._cutter = cutter
        self._lineage = lineage
        self._operations = operations
        self._pauses = pauses

    async def get(self, group: str, snapshots: Sequence[str] = ()) -> Members:
        """The group. Raises NotFound, InvalidArgument when `snapshots` are given and are not its snapshots."""
        found = await self._store.get(SnapshotGroup, group) if is_group_id(group) else None
        if found is None or found.meta.deleting or found.status.phase is not SnapshotPhase.READY:
            raise NotFound("group snapshot", group)
        _require_members(found, snapshots)
        return await self._with_members(found)

    async def create(self, name: str, volumes: Sequence[str]) -> Members:
        """Take snapshots of all volumes at one point in time, or return those that an earlier call took.

        Raises NotFound for a volume, AlreadyExists when the name is that of another set of volumes,
        FailedPrecondition when writers cannot be held back, ResourceExhausted, Unavailable.
        """
        group = group_id(name)
        return await self._operations.run(group, lambda: self._create(group, name, tuple(sorted(volumes))))

    async def delete(self, group: str, snapshots: Sequence[str] = ()) -> None:
        """Delete a group with its snapshots; absent is fine. InvalidArgument when `snapshots` are not its own."""
        if is_group_id(group):
            await self._operations.run(group, lambda: self._delete(group, snapshots))

    async def tidy(self, group: str) -> None:
        """Take back one that was cut off, end a deletion that was. Nothing to do is fine."""
        await self._operations.run(group, lambda: self._tidy(group))

    async def resume(self, group: SnapshotGroup) -> None:
        """Let hosts of its volumes go on: they may have been held back when the agent was killed."""
        async with self._operations.guard.hold(group.meta.name, wait_s=0.0):  # not during a pause of now
            found = [await self._store.get(Volume, name) for name in group.spec.volumes]
            await self._pauses.resume([each for each in found if each is not None])

    # --- inside ----------------------------------------------------------------------------------------------

    async def _create(self, group: str, name: str, volumes: tuple[str, ...]) -> Members:
        existing = await self._store.get(SnapshotGroup, group)
        if existing is not None and not existing.meta.deleting and existing.spec.volumes != volumes:
            raise AlreadyExists("group snapshot", name, f"of volumes {', '.join(existing.spec.volumes)}")
        if existing is not None and not existing.meta.deleting and existing.status.phase is SnapshotPhase.READY:
            return await self._with_members(existing)
        if existing is not None:
            await self._take_back(existing)
        async with AsyncExitStack() as held:
            for each in volumes:  # in order, so that two groups never wait for each other
                await held.enter_async_context(self._operations.guard.hold(each))
            sources = [await self._records.source(each) for each in volumes]
            return await self._take(group, name, sources)

    async def _take(self, group: str, name: str, volumes: list[Volume]) -> Members:
        ids = tuple(self._lineage.free_id(member_name(group, each.meta.name)) for each in volumes)
        spec = SnapshotGroupSpec(name, tuple(each.meta.name for each in volumes), ids)
        record = await self._store.create(SnapshotGroup(Meta(group, created_at=time.time()), spec))
        try:
            names = [member_name(group, each.meta.name) for each in volumes]
            members = [
                await self._records.add(each, volume, group=group) for each, volume in zip(names, volumes, strict=True)
            ]
            cut_at, taken = await self._cut(members, volumes)
            status = replace(record.status, phase=SnapshotPhase.READY, created_at=cut_at)
            return Members(await self._store.update(replace(record, status=status)), tuple(taken))
        except QuarryError:
            await self._take_back(record)
            raise

    async def _cut(self, members: list[Snapshot], volumes: list[Volume]) -> tuple[float, list[Snapshot]]:
        async with AsyncExitStack() as held:
            for each in volumes:
                await held.enter_async_context(self._lineage.lvols.hold(each.meta.name))
            async with self._pauses.of_all(volumes):
                cut_at = time.time()
                pairs = zip(members, volumes, strict=True)
                cuts = await asyncio.gather(
                    *(self._cutter.cut(member, volume) for member, volume in pairs), return_exceptions=True
                )
                for result in cuts:
                    if isinstance(result, BaseException):
                        raise result
            for member, volume in zip(members, volumes, strict=True):
                self._lineage.cut(volume.meta.name, member.meta.name)
        recording = (
            self._cutter.record(member, seen, cut_at)
            for member, seen in zip(members, cuts, strict=True)
            if not isinstance(seen, BaseException)
        )
        return cut_at, list(await asyncio.gather(*recording))

    async def _delete(self, group: str, snapshots: Sequence[str]) -> None:
        found = await self._store.get(SnapshotGroup, group)
        if found is None:
            return
        if not found.meta.deleting:
            _require_members(found, snapshots)
        await self._take_back(found)

    async def _tidy(self, group: str) -> None:
        found = await self._store.get(SnapshotGroup, group)
        if found is not None and (found.meta.deleting or found.status.phase is SnapshotPhase.PENDING):
            await self._take_back(found)

    async def _take_back(self, group: SnapshotGroup) -> None:
        """Hide all its snapshots, then forget it; they go as single ones do, each as soon as it can."""
        if group.status.phase is SnapshotPhase.PENDING:
            found = [await self._store.get(Volume, name) for name in group.spec.volumes]
            await self._pauses.resume([each for each in found if each is not None])
        if not group.meta.deleting:
            group = await self._store.update(replace(group, meta=replace(group.meta, deleting=True)))
        await asyncio.gather(*(self._drop(name) for name in group.spec.snapshots))
        await self._store.delete(SnapshotGroup, group.meta.name)

    async def _drop(self, name: str) -> None:
        """Hide a snapshot and let it go, if it can now."""
        async with self._operations.guard.hold(guard_key(name)):
            snapshot = await self._store.get(Snapshot, name)
            if snapshot is None:
                return
            hidden = await self._cutter.hide(snapshot)
            try:
                await self._cutter.settle(hidden)
            except Busy:
                self._lineage.stir(name)

    async def _with_members(self, group: SnapshotGroup) -> Members:
        found = [await self._store.get(Snapshot, name) for name in group.spec.snapshots]
        return Members(group, tuple(each for each in found if each is not None))


def _require_members(group: SnapshotGroup, snapshots: Sequence[str]) -> None:
    if snapshots and set(snapshots) != set(group.spec.snapshots):
        raise InvalidArgument(
            "snapshot_ids",
            f"not the snapshots of group {group.meta.name}",
            f"give {', '.join(group.spec.snapshots)}",
        )
