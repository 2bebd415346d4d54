"""I/O counters as the metrics tell them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.model import Volume

if TYPE_CHECKING:
    from agent.spdk.bdev import IoStat


@dataclass(frozen=True, slots=True)
class VolumeIo:
    """Counters of one volume since its target started."""

    volume: Volume
    stat: IoStat
    tick_rate: int

    def seconds(self, ticks: int) -> float:
        return ticks / self.tick_rate if self.tick_rate else 0.0


@dataclass(slots=True)
class Reading:
    """What was learned: `omitted` exported volumes are not in it (too many, no time, no answer)."""

    volumes: list[VolumeIo] = field(default_factory=list)
    omitted: int = 0
