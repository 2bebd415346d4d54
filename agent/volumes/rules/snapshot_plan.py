"""The pure plans about snapshots: whether one can go, and how a volume is made of one. No I/O and no clock."""

from __future__ import annotations

from dataclasses import dataclass

from agent.volumes.rules.plan import CreateLvol, DeleteLvol, ResizeLvol


@dataclass(frozen=True, slots=True)
class SnapshotSeen:
    """A snapshot's lvol. `known_as_one`: whether the target itself calls it a snapshot, and so lets lvols onto it."""

    uuid: str
    size_bytes: int
    clones: tuple[str, ...] = ()
    known_as_one: bool = True


# --- deletion ---


@dataclass(frozen=True, slots=True)
class Gone:
    """Nothing is left to delete."""


@dataclass(frozen=True, slots=True)
class Remove:
    """It can be deleted. `heir`: the one clone that then owns what it held, empty when there is none."""

    heir: str = ""


@dataclass(frozen=True, slots=True)
class Keep:
    """It has to stay; `reason` says for whom."""

    reason: str


def removal(seen: SnapshotSeen | None, waiting: tuple[str, ...]) -> Gone | Remove | Keep:
    """What deleting a snapshot takes. `waiting`: volumes that are still to be made of it.

    With several clones it stays: what they share exists once, copying it to each would cost the room it occupies and
    more. With one it costs nothing to let that one have it.
    """
    if seen is None:
        return Gone()
    if waiting:
        return Keep(f"volumes are being made of it: {_some(waiting)}")
    if len(seen.clones) > 1:
        return Keep(f"its data are shared by {_some(seen.clones)}")
    return Remove(seen.clones[0] if seen.clones else "")


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


# --- a volume made of a snapshot ---


@dataclass(frozen=True, slots=True)
class DesiredSeed:
    """A volume to be made of a snapshot in the same pool. `helper` is the name of an lvol for the time of it."""

    pool: str
    volume: str
    snapshot: str
    helper: str
    size_bytes: int

    def bdev(self, name: str) -> str:
        return f"{self.pool}/{name}"


@dataclass(frozen=True, slots=True)
class VolumeSeen:
    """The volume's lvol. `parent` is the snapshot it stands on."""

    size_bytes: int
    parent: str = ""


@dataclass(frozen=True, slots=True)
class CloneLvol:
    snapshot: str
    name: str


@dataclass(frozen=True, slots=True)
class SetParent:
    bdev: str
    parent: str


SeedAction = CreateLvol | CloneLvol | SetParent | ResizeLvol | DeleteLvol


def seed(
    desired: DesiredSeed, volume: VolumeSeen | None, snapshot: SnapshotSeen, *, helper: bool
) -> tuple[tuple[SeedAction, ...], ...]:
    """The rounds that make the volume; none when it is made.

    Not `bdev_lvol_clone`: what a clone wrote itself is not zeroed when it is deleted (decision 0005). An lvol of our
    own is put on the snapshot instead. A snapshot that had no clones when the pool was loaded is called one by the
    target only once it has: that is what the helper, a clone that is never written to, is for.
    """
    rounds: list[tuple[SeedAction, ...]] = []
    if volume is None or volume.parent != desired.snapshot:
        if not snapshot.known_as_one:
            helper = True
            rounds.append((CloneLvol(desired.bdev(desired.snapshot), desired.helper),))
        if volume is None:
            rounds.append((CreateLvol(desired.pool, desired.volume, snapshot.size_bytes, True),))
        rounds.append((SetParent(desired.bdev(desired.volume), desired.bdev(desired.snapshot)),))
    last: list[SeedAction] = []
    if (volume.size_bytes if volume else snapshot.size_bytes) < desired.size_bytes:
        last.append(ResizeLvol(desired.bdev(desired.volume), desired.size_bytes))
    if helper:
        last.append(DeleteLvol(desired.bdev(desired.helper)))
    return (*rounds, tuple(last)) if last else tuple(rounds)
