"""What the bench measured, and how it is judged."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

RATE_RATIO = 0.25
"""At 64 callers the agent reaches at least this part of the raw floor."""
LATENCY_RATIO = 0.5
"""Create and publish at one caller take at most this part of the same done call by call."""
GROWTH_RATIO = 1.2
"""A call with many volumes costs at most this many times what it costs with few."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds."""

    p50: float
    p99: float
    count: int

    @classmethod
    def of(cls, seconds: list[float]) -> Latency:
        ordered = sorted(seconds)
        last = ordered[min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))]
        return cls(round(median(ordered) * 1000, 3), round(last * 1000, 3), len(ordered))


@dataclass(frozen=True)
class Rate:
    """Volume lives (created, published, unpublished, deleted) a second. `repeats` of agent and floor in turn."""

    callers: int
    agent: float
    floor: float
    repeats_agent: list[float]
    repeats_floor: list[float]
    agent_cpu_ms_per_life: float
    client_cpu_ms_per_life: float
    """What this process spent on being the CSI client; it shares the CPUs with the agent."""
    calls: dict[str, Latency]

    @property
    def ratio(self) -> float:
        return self.agent / self.floor


@dataclass(frozen=True)
class Growth:
    """Milliseconds at one caller with `few` and with `many` volumes, agent and floor."""

    few: int
    many: int
    agent_few: dict[str, Latency]
    agent_many: dict[str, Latency]
    floor_few: dict[str, Latency]
    floor_many: dict[str, Latency]
    agent_cpu_ms_few: float
    """CPU of the agent per volume life, which other load on the machine disturbs less than latency."""
    agent_cpu_ms_many: float

    def ratios(self) -> dict[str, float]:
        return {call: self.agent_many[call].p50 / self.agent_few[call].p50 for call in self.agent_few}

    def floor_ratios(self) -> dict[str, float]:
        return {call: self.floor_many[call].p50 / self.floor_few[call].p50 for call in self.floor_few}


@dataclass(frozen=True)
class Recovery:
    """Seconds from the restarted target's first answer until all `volumes` are exported again to their hosts."""

    volumes: int
    agent_s: float
    floor_s: float
    target_start_s: float


@dataclass(frozen=True)
class Usage:
    """The agent process: resident memory in MiB, CPU in percent of one core."""

    rss_start_mib: float
    rss_few_mib: float
    rss_many_mib: float
    rss_end_mib: float
    idle_cpu_percent: float


@dataclass
class Results:
    target: str
    version: str
    cpus: str
    rates: list[Rate] = field(default_factory=list)
    official_lives_per_second: float = 0.0
    official: dict[str, Latency] = field(default_factory=dict)
    floor_steps: dict[str, Latency] = field(default_factory=dict)
    queries: dict[str, Latency] = field(default_factory=dict)
    growth: Growth | None = None
    recovery: Recovery | None = None
    usage: Usage | None = None


@dataclass(frozen=True)
class Verdict:
    what: str
    value: float
    limit: float
    passed: bool


def verdicts(results: Results) -> list[Verdict]:
    """The promises of the product, as far as they were measured."""
    found = []
    most = max(results.rates, key=lambda rate: rate.callers, default=None)
    if most is not None:
        what = f"rate at {most.callers} callers / raw pipelined floor, at least"
        found.append(Verdict(what, most.ratio, RATE_RATIO, most.ratio >= RATE_RATIO))
    alone = next((rate for rate in results.rates if rate.callers == 1), None)
    if alone is not None and results.official:
        ours = alone.calls["create"].p50 + alone.calls["publish"].p50
        ratio = ours / (results.official["create"].p50 + results.official["publish"].p50)
        what = "create + publish at one caller / call by call, at most"
        found.append(Verdict(what, ratio, LATENCY_RATIO, ratio <= LATENCY_RATIO))
    if results.growth is not None:
        worst = max(results.growth.ratios().values())
        what = f"a call at {results.growth.many:,} volumes / at {results.growth.few}, worst, at most"
        found.append(Verdict(what, worst, GROWTH_RATIO, worst <= GROWTH_RATIO))
    return found
