"""What CSI promises, as a model: a world of volumes, and for each call every answer that a world admits.

Pure: no I/O, no clock, nothing of the agent's own code. A call changes nothing unless it is answered OK.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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

    def written(self, offset: int, text: str) -> Vol:
        return replace(self, data=tuple(sorted({**dict(self.data), offset: text}.items())))


@dataclass(frozen=True)
class World:
    """All volumes there are. Worlds are values: calls make new ones."""

    volumes: tuple[Vol, ...] = ()

    def get(self, name: str) -> Vol | None:
        return next((each for each in self.volumes if each.name == name), None)

    def having(self, volume: Vol) -> World:
        others = tuple(each for each in self.volumes if each.name != volume.name)
        return World(tuple(sorted((*others, volume), key=lambda each: each.name)))

    def without(self, name: str) -> World:
        return World(tuple(each for each in self.volumes if each.name != name))


@dataclass(frozen=True)
class Pool:
    """The one disk of a tier; `reserve` and `warning` are bytes that have to be free for promises, and for comfort."""

    size: int
    ratio: float
    reserve: int
    warning: int

    def promised(self, volumes: list[Vol]) -> float:
        return sum(each.size if each.thick else each.size / self.ratio for each in volumes)

    def free(self, volumes: list[Vol]) -> int:
        """The least that can be free: what thin volumes wrote is gone, and that of deleted ones for a while."""
        thick = sum(each.size for each in volumes if each.thick)
        thin = [each for each in volumes if not each.thick]
        written = sum(len({offset // CLUSTER for offset, _ in each.data}) * CLUSTER for each in thin)
        return self.size - thick - written - _DELETED

    def room(self, volumes: list[Vol], thick: bool) -> tuple[float, float]:
        """(what is surely there, what may be there) for one more volume."""
        free, left = self.free(volumes), self.size - self.promised(volumes)
        if thick:
            return min(left, free - self.reserve) - CLUSTER, min(left, self.size - self.reserve)
        most = left * self.ratio
        return most - CLUSTER if free >= self.reserve else 0, most


_DELETED = 32 * MIB
"""What thin volumes deleted a moment ago had written may still count as taken, until the next look."""


@dataclass(frozen=True)
class Setting:
    """What does not change: pools by tier, and the ids that volumes have."""

    pools: dict[str, Pool]
    id_of: Callable[[str], str]

    def volumes_of(self, world: World, tier: str) -> list[Vol]:
        return [each for each in world.volumes if each.tier == tier]

    def room(self, world: World, tier: str, thick: bool) -> tuple[float, float]:
        return self.pools[tier].room(self.volumes_of(world, tier), thick)

    def comfortable(self, world: World, tier: str) -> bool:
        """Whether nothing can be wrong with the volumes of that tier."""
        pool = self.pools[tier]
        return pool.free(self.volumes_of(world, tier)) >= pool.warning


@dataclass(frozen=True)
class Outcome:
    """An admitted answer: its code, what the response has to look like, and the world after it."""

    code: StatusCode
    world: World
    holds: Callable[[Any], bool] = lambda _: True


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

    def request(self, setting: Setting) -> Message:
        raise NotImplementedError

    def outcomes(self, world: World, setting: Setting) -> Iterator[Outcome]:
        raise NotImplementedError


def after(call: Call, world: World, setting: Setting, answer: Answer) -> Iterator[World]:
    """The worlds in which `call` may have left us with `answer`."""
    for outcome in call.outcomes(world, setting):
        if outcome.code is answer.code and (answer.response is None or outcome.holds(answer.response)):
            yield outcome.world


def maybe_after(call: Call, world: World, setting: Setting) -> Iterator[World]:
    """The worlds in which `call`, never answered, may have left us: it happened or it did not."""
    yield world
    for outcome in call.outcomes(world, setting):
        if outcome.world != world:
            yield outcome.world


def rounded(size: int) -> int:
    return -(-size // CLUSTER) * CLUSTER
