"""How often something happened and how long it took, by a few words each: cheap enough for every call.

Plain numbers, counted in the event loop by whoever does the work and read by whoever is asked for them (agent.diag).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

Key = tuple[str, ...]

BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the classes of durations, in seconds. A call to SPDK takes 4 or 8 ms, making a pool takes seconds."""


class Series:
    """Of one key: calls in each class of durations (the last one has no bound), and seconds in all."""

    __slots__ = ("counts", "seconds")

    def __init__(self, classes: int) -> None:
        self.counts = [0] * classes
        self.seconds = 0.0

    @property
    def total(self) -> int:
        return sum(self.counts)


class Tally:
    """Durations by key. Keys have to come from a bounded set of words: each is kept for ever."""

    __slots__ = ("bounds_s", "series")

    def __init__(self, bounds_s: Sequence[float] = BOUNDS_S) -> None:
        self.bounds_s = tuple(bounds_s)
        self.series: dict[Key, Series] = {}

    def add(self, key: Key, seconds: float) -> None:
        """Count one more of `key`, which took `seconds`."""
        series = self.series.get(key)
        if series is None:
            series = self.series[key] = Series(len(self.bounds_s) + 1)
        series.counts[bisect_left(self.bounds_s, seconds)] += 1
        series.seconds += seconds
