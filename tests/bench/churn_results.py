"""What was measured in a cluster, and how it is judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tests.bench.results import Latency, Verdict

REQUESTS_RATIO = 1.1
"""A life takes at most this many times the requests, in a run of many as in one of few."""
MEMORY_RATIO = 1.25
"""A process has at most this many times the memory after many lives that it has after few."""
CROWD_RATIO = 1.2
"""The last of many volumes costs at most this many times what the first did."""


@dataclass(frozen=True)
class Process:
    """Per life: CPU milliseconds and requests to the API by verb and kind. Memory (MiB) is that at the end."""

    name: str
    cpu_ms: float
    rss_mib: float
    requests: dict[str, float]


@dataclass(frozen=True)
class Lives:
    """A run of `count` lives. Per life: requests as the API server counted them, what its watches sent."""

    count: int
    per_second: float
    requests: dict[str, float]
    watch_events: float
    watch_bytes: float
    processes: list[Process]
    calls: dict[str, Latency]

    @property
    def requests_per_life(self) -> float:
        return sum(self.requests.values())


@dataclass(frozen=True)
class Crowded:
    """A call for the first tenth and for the last tenth of the volumes, by what was measured, per call."""

    first: dict[str, float]
    last: dict[str, float]

    def ratio(self, what: str) -> float:
        return self.last[what] / self.first[what] if self.first[what] else 1.0


@dataclass(frozen=True)
class Crowd:
    """`volumes` at the same time. `rss_mib`: of the processes after each step, by step."""

    volumes: int
    steps: dict[str, Crowded]
    rss_mib: dict[str, dict[str, float]]

    def cost(self, what: str) -> float:
        """All four calls: last tenth against first."""
        first = sum(each.first[what] for each in self.steps.values())
        return sum(each.last[what] for each in self.steps.values()) / first if first else 1.0


@dataclass(frozen=True)
class Churn:
    """`floors`: lives per second of the bare writes, before, between and after the runs."""

    target: str
    cpus: int
    callers: int
    floors: list[float]
    few: Lives
    many: Lives
    crowd: Crowd
    beside: Lives
    repeated: int
    """Calls that were answered "ask again"."""

    @property
    def ratio(self) -> float:
        return self.many.per_second / (sum(self.floors[-2:]) / 2)


def verdicts(churn: Churn) -> list[Verdict]:
    few, many = churn.few, churn.many
    asked = many.requests_per_life / few.requests_per_life
    found = [_most(f"requests per volume in {many.count:,} lives / in {few.count}", asked, REQUESTS_RATIO)]
    before = {each.name: each.rss_mib for each in few.processes}
    grown = max(each.rss_mib / before[each.name] for each in many.processes if each.name in ("node", "controller"))
    found.append(_most(f"memory after {many.count:,} lives / after {few.count}, worst", grown, MEMORY_RATIO))
    for what in ("requests", *(name for name in churn.crowd.steps["create"].first if "CPU" in name)):
        label = f"{what} of the last of {churn.crowd.volumes:,} volumes / of the first"
        found.append(_most(label, churn.crowd.cost(what), CROWD_RATIO))
    return found


def _most(what: str, value: float, limit: float) -> Verdict:
    return Verdict(f"{what}, at most", round(value, 3), limit, value <= limit)


def disagreement(lives: Lives) -> Mapping[str, float]:
    """By which the requests about volumes differ that the API server and the processes count; nothing when even.

    Others are left out: they come at their own times, also between asking one and asking the other.
    """
    ours: dict[str, float] = {}
    for process in lives.processes:
        for what, count in process.requests.items():
            verb, kind = what.split(" ")
            plural = "/".join([f"{kind.split('/')[0].lower()}s", *kind.split("/")[1:]])
            ours[f"{verb} {plural}"] = ours.get(f"{verb} {plural}", 0.0) + count
    found = {what: round(count - ours.get(what, 0.0), 3) for what, count in lives.requests.items()}
    return {what: difference for what, difference in found.items() if " volumes" in what and abs(difference) > 0.05}
