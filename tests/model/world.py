"""What CSI promises, as a model: a world of volumes, and for each call every answer that a world admits.

Pure: no I/O, no clock, nothing of the agent's own code. A call changes nothing unless it is answered OK.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf.message import Message
from grpc import StatusCode

from agent.csi.pb import csi_pb2 as csi

NODE = "node-a"
MIB = 1 << 20
GIB = 1 << 30
CLUSTER = MIB
DEFAULT_SIZE = GIB
LARGEST = 1 << 60

Mode = csi.VolumeCapability.AccessMode
READERS = frozenset({Mode.SINGLE_NODE_READER_ONLY, Mode.MULTI_NODE_READER_ONLY})
SHORT_NAMES = {
    Mode.SINGLE_NODE_WRITER: "RWO",
    Mode.SINGLE_NODE_MULTI_WRITER: "RWO",
    Mode.SINGLE_NODE_READER_ONLY: "RWO",
    Mode.SINGLE_NODE_SINGLE_WRITER: "RWOP",
    Mode.MULTI_NODE_READER_ONLY: "ROX",
    Mode.MULTI_NODE_SINGLE_WRITER: "one writer",
    Mode.MULTI_NODE_MULTI_WRITER: "RWX",
}
MODES = {
    "RWO": Mode.SINGLE_NODE_WRITER,
    "RWOP": Mode.SINGLE_NODE_SINGLE_WRITER,
    "ROX": Mode.MULTI_NODE_READER_ONLY,
    "one writer": Mode.MULTI_NODE_SINGLE_WRITER,
    "RWX": Mode.MULTI_NODE_MULTI_WRITER,
}


@dataclass(frozen=True)
class Attached:
    mode: str
    readonly: bool


@dataclass(frozen=True)
class Vol:
    """A volume as its users know it. `data`: what was written, by offset; everything else reads as zeroes."""

    name: str
    size: int
    tier: str
    thick: bool
    parameters: tuple[tuple[str, str], ...]
    attached: Attached | None = None
    data: tuple[tuple[int, str], ...] = ()
    source: tuple[str, str] | None = None
    """("snapshot", its id) or ("volume", its name)."""

    def written(self, offset: int, text: str) -> Vol:
        return replace(self, data=tuple(sorted({**dict(self.data), offset: text}.items())))


@dataclass(frozen=True)
class Snap:
    """A snapshot. Its id is the agent's choice: empty until an answer told it."""

    name: str
    id: str
    volume: Vol


@dataclass(frozen=True)
class Weight:
    """What weighs on a pool: a volume or a snapshot of it."""

    tier: str
    size: int
    thick: bool
    data: tuple[tuple[int, str], ...]

    @classmethod
    def of(cls, volume: Vol) -> Weight:
        return cls(volume.tier, volume.size, volume.thick, volume.data)


@dataclass(frozen=True)
class World:
    """All there is. Worlds are values: calls make new ones.

    `lingering` may still be there though callers do not see it: deleted snapshots that others stand on, and those that
    clones were made by.
    """

    volumes: tuple[Vol, ...] = ()
    snapshots: tuple[Snap, ...] = ()
    lingering: tuple[Weight, ...] = ()

    def get(self, name: str) -> Vol | None:
        return next((each for each in self.volumes if each.name == name), None)

    def having(self, volume: Vol) -> World:
        others = tuple(each for each in self.volumes if each.name != volume.name)
        return replace(self, volumes=tuple(sorted((*others, volume), key=lambda each: each.name)))

    def without(self, name: str) -> World:
        return replace(self, volumes=tuple(each for each in self.volumes if each.name != name))

    def snapshot(self, name: str) -> Snap | None:
        return next((each for each in self.snapshots if each.name == name), None)

    def having_snapshot(self, snapshot: Snap) -> World:
        others = tuple(each for each in self.snapshots if each.name != snapshot.name)
        return replace(self, snapshots=tuple(sorted((*others, snapshot), key=lambda each: each.name)))

    def without_snapshot(self, name: str) -> World:
        gone = [each for each in self.snapshots if each.name == name]
        left = tuple(each for each in self.snapshots if each.name != name)
        return replace(self, snapshots=left).with_lingering(*(each.volume for each in gone))

    def with_lingering(self, *volumes: Vol) -> World:
        lingering = (*self.lingering, *map(Weight.of, volumes))
        return replace(self, lingering=tuple(sorted(lingering, key=repr)))

    def weights(self, tier: str) -> list[Weight]:
        """All that surely weighs on the pool of that tier."""
        there = [*self.volumes, *(each.volume for each in self.snapshots)]
        return [Weight.of(each) for each in there if each.tier == tier]


@dataclass(frozen=True)
class Pool:
    """The one disk of a tier; `reserve` and `warning` are bytes that have to be free for promises, and for comfort."""

    size: int
    ratio: float
    reserve: int
    warning: int

    def ceiling(self, thick: bool) -> float:
        """The most that a volume could ever be."""
        return self.size - self.reserve if thick else self.size * self.ratio

    def promised(self, weights: list[Weight]) -> float:
        return sum(each.size if each.thick else each.size / self.ratio for each in weights)

    def free(self, weights: list[Weight]) -> int:
        """The least that can be free: what thin volumes wrote is gone, and that of deleted ones for a while."""
        taken = sum(each.size if each.thick else clusters_of(each) * CLUSTER for each in weights)
        return self.size - taken - _DELETED

    def room(self, surely: list[Weight], perhaps: list[Weight], thick: bool) -> tuple[float, float]:
        """(what is surely there, what may be there) for one more, when that weighs on it surely and this perhaps."""
        free = self.free([*surely, *perhaps])
        least, most = self.size - self.promised([*surely, *perhaps]), self.size - self.promised(surely)
        if thick:
            return min(least, free) - self.reserve - CLUSTER, min(most, self.size) - self.reserve
        return least * self.ratio - CLUSTER if free >= self.reserve else 0, most * self.ratio


def clusters_of(weight: Weight) -> int:
    """How many clusters hold data that was written."""
    return len({offset // CLUSTER for offset, _ in weight.data})


_DELETED = 32 * MIB
"""What thin volumes deleted a moment ago had written may still count as taken, until the next look."""


@dataclass(frozen=True)
class Setting:
    """What does not change: pools by tier, and the ids that volumes have."""

    pools: dict[str, Pool]
    id_of: Callable[[str], str]

    def room(self, world: World, tier: str, thick: bool) -> tuple[float, float]:
        return self.pools[tier].room(world.weights(tier), _lingering(world, tier), thick)

    def comfortable(self, world: World, tier: str) -> bool:
        """Whether nothing can be wrong with the volumes of that tier."""
        pool = self.pools[tier]
        return pool.free([*world.weights(tier), *_lingering(world, tier)]) >= pool.warning


def _lingering(world: World, tier: str) -> list[Weight]:
    return [each for each in world.lingering if each.tier == tier]


@dataclass(frozen=True)
class Outcome:
    """An admitted answer: its code, what the response has to look like, and the world after it."""

    code: StatusCode
    world: World
    holds: Callable[[Any], bool] = lambda _: True
    learned: Callable[[Any], World] | None = None
    """The world, where the response tells something of it that only the agent knows."""


@dataclass(frozen=True)
class Answer:
    """What a call was answered; `response` is None unless the code is OK. No code: it was never answered."""

    code: StatusCode | None
    response: Message | None = None
    details: str = ""

    def __str__(self) -> str:
        code = self.code.name if self.code else "no answer"
        return f"{code} {self.details}{' '.join(str(self.response).split()) if self.response is not None else ''}"


class Call:
    """One CSI call with its arguments fixed."""

    method: str

    def bound(self, snapshot_ids: Mapping[str, str]) -> Call:
        """The call with the ids that the caller knows now in place of names."""
        return self

    def request(self, setting: Setting) -> Message:
        raise NotImplementedError

    def outcomes(self, world: World, setting: Setting) -> Iterator[Outcome]:
        raise NotImplementedError


def after(call: Call, world: World, setting: Setting, answer: Answer) -> Iterator[World]:
    """The worlds in which `call` may have left us with `answer`."""
    for outcome in call.outcomes(world, setting):
        if outcome.code is answer.code and (answer.response is None or outcome.holds(answer.response)):
            yield outcome.learned(answer.response) if outcome.learned and answer.response else outcome.world


def maybe_after(call: Call, world: World, setting: Setting) -> Iterator[World]:
    """The worlds in which `call`, never answered, may have left us: it happened or it did not."""
    yield world
    for outcome in call.outcomes(world, setting):
        if outcome.world != world:
            yield outcome.world


def merged(worlds: Iterable[World]) -> frozenset[World]:
    """The worlds without those that differ only in what may linger: all of it may."""
    by_content: dict[tuple[object, ...], list[World]] = {}
    for world in worlds:
        by_content.setdefault((world.volumes, world.snapshots), []).append(world)
    return frozenset(_with_most(each) for each in by_content.values())


def _with_most(worlds: list[World]) -> World:
    most: Counter[Weight] = Counter()
    for world in worlds:
        most |= Counter(world.lingering)
    return replace(worlds[0], lingering=tuple(sorted(most.elements(), key=repr)))


def rounded(size: int) -> int:
    return -(-size // CLUSTER) * CLUSTER
