"""Who depends on whom: which lvol stands on which snapshot, what waits for a snapshot, and the locks on lvols.

Kept in memory, derived from the store and the target. SPDK lets one change at a time happen to an lvol and its clones,
and a deletion that it refuses because another change is under way takes the lvol's bdev away all the same: so whoever
changes an lvol holds it here, a parent before its clone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from agent.model import Snapshot, SnapshotPhase, Volume
from agent.tasks.guard import VolumeGuard
from agent.volumes.rules.names import snapshot_id


class Lineage:
    """`lvols` are the locks, by lvol name; `look_after` is called with snapshots that may be able to go now."""

    def __init__(self) -> None:
        self.lvols = VolumeGuard()
        self.look_after: Callable[..., None] = lambda *names: None
        self._parents: dict[str, str] = {}
        self._children: dict[str, set[str]] = {}
        self._live: dict[str, str] = {}
        self._ids: set[str] = set()
        self._hidden: set[str] = set()
        self._internal: set[str] = set()
        self._waiting: dict[str, set[str]] = {}

    def load(self, snapshots: Iterable[Snapshot], volumes: Iterable[Volume]) -> None:
        """Start from what is stored."""
        for snapshot in snapshots:
            self.add(snapshot)
        for volume in volumes:
            if volume.spec.source is not None and not is_made(volume):
                self.expect(volume.meta.name, volume.spec.source.snapshot)

    # --- the target's tree ---

    def reset(self, parents: Mapping[str, str]) -> None:
        """The snapshot that each lvol stands on, by name, as the target tells."""
        self._parents, self._children = {}, {}
        for lvol, parent in parents.items():
            self._stand(lvol, parent)

    def parent_of(self, lvol: str) -> str:
        """The snapshot `lvol` stands on, empty when it stands by itself."""
        return self._parents.get(lvol, "")

    def children_of(self, lvol: str) -> tuple[str, ...]:
        """What stands on `lvol`, also what is being deleted just now: the target no longer shows that."""
        return tuple(sorted(self._children.get(lvol, ())))

    def cut(self, lvol: str, snapshot: str) -> None:
        """`snapshot` was taken of `lvol`, and is now between it and what it stood on. May be told again."""
        if self.parent_of(lvol) == snapshot:
            return
        self.put_on(snapshot, self.parent_of(lvol))
        self._stand(lvol, snapshot)

    def put_on(self, lvol: str, snapshot: str) -> None:
        """`lvol` was put on `snapshot` (empty: on nothing)."""
        self._stand(lvol, snapshot)

    def gone(self, lvol: str, heir: str = "") -> None:
        """`lvol` was deleted; `heir` is the clone that took its place, if it had one."""
        parent = self.parent_of(lvol)
        self._stand(lvol, "")
        if heir:
            self.put_on(heir, parent)
        elif parent in self._hidden:
            self.stir(parent)

    def _stand(self, lvol: str, parent: str) -> None:
        before = self._parents.pop(lvol, "")
        if before:
            siblings = self._children[before]
            siblings.discard(lvol)
            if not siblings:
                del self._children[before]
        if parent:
            self._parents[lvol] = parent
            self._children.setdefault(parent, set()).add(lvol)

    # --- the records ---

    def live(self, csi_name: str) -> str | None:
        """Id of the snapshot with that name which is not deleted."""
        return self._live.get(csi_name)

    def free_id(self, csi_name: str) -> str:
        """The id for a new snapshot of that name: of a generation that no deleted one occupies."""
        generation = 0
        while (found := snapshot_id(csi_name, generation)) in self._ids:
            generation += 1
        return found

    def add(self, snapshot: Snapshot) -> None:
        """Know a snapshot as it is now in the store."""
        name = snapshot.meta.name
        self._ids.add(name)
        if snapshot.spec.owner:
            self._internal.add(name)
        if snapshot.meta.deleting:
            self._hidden.add(name)
            if self._live.get(snapshot.spec.csi_name) == name:
                del self._live[snapshot.spec.csi_name]
        else:
            self._live[snapshot.spec.csi_name] = name

    def forget(self, snapshot: Snapshot) -> None:
        """The record is gone."""
        name = snapshot.meta.name
        for known in (self._ids, self._hidden, self._internal):
            known.discard(name)
        if self._live.get(snapshot.spec.csi_name) == name:
            del self._live[snapshot.spec.csi_name]

    # --- who waits ---

    def expect(self, volume: str, snapshot: str) -> None:
        """`volume` is going to be made of `snapshot`: until then that stays."""
        self._waiting.setdefault(snapshot, set()).add(volume)

    def served(self, volume: str, snapshot: str) -> None:
        """`volume` is made, or never will be: it needs `snapshot` no more."""
        waiting = self._waiting.get(snapshot, set())
        waiting.discard(volume)
        if not waiting:
            self._waiting.pop(snapshot, None)
            if snapshot in self._hidden or snapshot in self._internal:
                self.stir(snapshot)

    def waiting_for(self, snapshot: str) -> tuple[str, ...]:
        """Volumes that are still to be made of `snapshot`."""
        return tuple(sorted(self._waiting.get(snapshot, ())))

    # --- what is to be tidied up ---

    def stir(self, *snapshots: str) -> None:
        """Have these looked after; none named: all that are deleted or internal."""
        self.look_after(*(snapshots or self._hidden | self._internal))


def is_made(volume: Volume) -> bool:
    """Whether the volume has its lvol, with all its data."""
    return any(replica.lvol_uuid for replica in volume.status.replicas)


def is_visible(snapshot: Snapshot) -> bool:
    """Whether callers may know of it."""
    return not snapshot.meta.deleting and not snapshot.spec.owner and snapshot.status.phase is not SnapshotPhase.PENDING
