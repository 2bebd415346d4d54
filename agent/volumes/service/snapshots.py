"""The snapshots of this machine as callers see them: create, delete, get, list, and what clones need of them.

Desired state goes to the store first. A volume and its snapshots are independent of each other in the callers' eyes;
a deleted snapshot that others still stand on is hidden and goes when it can.
"""

from __future__ import annotations

from agent.errors import (
    AlreadyExists,
    Busy,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    QuarryError,
    Unavailable,
)
from agent.model import Snapshot, SnapshotPhase, Volume
from agent.store.interface import Store
from agent.tasks.operations import Operations
from agent.volumes.rules.names import clone_name, is_snapshot_id, snapshot_id
from agent.volumes.rules.settling import Quiesce, SnapshotSettler
from agent.volumes.service.lineage import Lineage, is_visible
from agent.volumes.service.snapshot_records import SnapshotRecords

_KEY_LENGTH = len(snapshot_id(""))


class SnapshotService:
    """Snapshot operations; raises only what agent.errors defines. One operation per snapshot at a time."""

    def __init__(
        self,
        store: Store,
        records: SnapshotRecords,
        settler: SnapshotSettler,
        lineage: Lineage,
        operations: Operations,
        quiesce: Quiesce,
    ) -> None:
        self._store = store
        self._records = records
        self._settler = settler
        self._lineage = lineage
        self._operations = operations
        self._quiesce = quiesce

    # --- queries ---------------------------------------------------------------------------------------------

    async def get(self, name: str) -> Snapshot:
        """The snapshot with that id. Raises NotFound, also for one that is deleted or not cut yet."""
        found = await self._store.get(Snapshot, name) if is_snapshot_id(name) else None
        if found is None or not is_visible(found):
            raise NotFound("snapshot", name)
        return found

    async def list(self, volume: str = "") -> list[Snapshot]:
        """All snapshots by id; of one volume if it is given."""
        found = [each for each in await self._store.list(Snapshot) if is_visible(each)]
        return sorted((each for each in found if volume in ("", each.spec.volume)), key=lambda each: each.meta.name)

    # --- operations ------------------------------------------------------------------------------------------

    async def create(self, name: str, volume_id: str) -> Snapshot:
        """Take a snapshot, or return the one that an earlier call with the same name took.

        Raises NotFound for the volume, AlreadyExists when the name is that of another volume's snapshot,
        ResourceExhausted when there is no room now.
        """
        return await self._operations.run(guard_key(snapshot_id(name)), lambda: self._create(name, volume_id))

    async def delete(self, snapshot: str) -> None:
        """Delete a snapshot; absent is fine. It is hidden from now on, and goes as soon as nobody stands on it."""
        if is_snapshot_id(snapshot):
            await self._operations.run(guard_key(snapshot), lambda: self._delete(snapshot))

    # --- for volumes that are made of others --------------------------------------------------------------------

    async def usable(self, name: str) -> Snapshot:
        """The snapshot, with its data. Raises NotFound, FailedPrecondition when its data are gone."""
        return _usable(await self.get(name))

    async def take_for_clone(self, volume_id: str, clone: str) -> Snapshot:
        """An internal snapshot of the volume, of which `clone` is to be made. The caller holds the guard of `clone`."""
        name = clone_name(clone)
        existing = await self._live(name)
        if existing is not None and existing.spec.volume != volume_id:
            # Left by an earlier attempt at another clone of this name; it is tidied up by itself.
            self._lineage.stir(existing.meta.name)
            existing = None
        if existing is not None and existing.status.phase is SnapshotPhase.READY:
            return existing
        async with self._operations.guard.hold(volume_id):
            volume = await self._records.source(volume_id)
            return await self._take(existing or await self._records.add(name, volume, owner=clone), volume)

    # --- inside ----------------------------------------------------------------------------------------------

    async def _create(self, name: str, volume_id: str) -> Snapshot:
        existing = await self._live(name)
        if existing is not None and existing.spec.volume != volume_id:
            raise AlreadyExists("snapshot", name, f"of volume {existing.spec.volume}")
        if existing is not None and existing.status.phase is not SnapshotPhase.PENDING:
            return _usable(existing)
        async with self._operations.guard.hold(volume_id):
            volume = await self._records.source(volume_id)
            snapshot = existing or await self._records.add(name, volume)
            return await self._take(snapshot, volume)

    async def _live(self, csi_name: str) -> Snapshot | None:
        found = self._lineage.live(csi_name)
        return await self._store.get(Snapshot, found) if found else None

    async def _take(self, snapshot: Snapshot, volume: Volume) -> Snapshot:
        try:
            return await self._settler.take(snapshot, volume, self._quiesce)
        except DeadlineExceeded:
            raise  # it may yet be cut: the record stays, for the call that is repeated or the next audit
        except Unavailable:
            # As above; but a clone's call may never be repeated, and then nobody else would come back to it.
            if snapshot.spec.owner:
                self._lineage.stir(snapshot.meta.name)
            raise
        except QuarryError as error:
            # A final answer means that nothing is left behind.
            hidden = await self._settler.hide(snapshot)
            try:
                await self._settler.settle(hidden)
            except QuarryError:
                self._lineage.stir(snapshot.meta.name)
            raise error

    async def _delete(self, name: str) -> None:
        snapshot = await self._store.get(Snapshot, name)
        if snapshot is None or snapshot.spec.owner:
            return
        if snapshot.spec.group and not snapshot.meta.deleting:
            raise InvalidArgument(
                "snapshot_id", f"{name} is of group {snapshot.spec.group}", "delete it with DeleteVolumeGroupSnapshot"
            )
        snapshot = await self._settler.hide(snapshot)
        try:
            await self._settler.settle(snapshot)
        except Busy:
            self._lineage.stir(name)  # a clone of it is being changed: hidden it is, and it goes a little later


def guard_key(snapshot: str) -> str:
    """What operations on a snapshot hold: its id without the generation, since all of a name exclude each other."""
    return snapshot[:_KEY_LENGTH]


def _usable(snapshot: Snapshot) -> Snapshot:
    if snapshot.status.phase is SnapshotPhase.FAILED:
        raise FailedPrecondition(f"snapshot {snapshot.meta.name} has failed: {snapshot.status.message}")
    return snapshot
