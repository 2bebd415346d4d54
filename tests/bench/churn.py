"""What volumes cost a cluster: many lives, 50 at a time, and many volumes at the same time."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from agent.csi.client import CallFailed, CsiClient
from tests.bench import bare
from tests.bench.agent import Timings, pooled, timed
from tests.bench.churn_results import Churn, Crowd, Crowded, Lives, Process
from tests.bench.cluster import API, BYSTANDER, CONTROLLER, NODE, PARAMETERS, MeasuredCluster, Told
from tests.bench.raw import STEPS
from tests.bench.results import Latency
from tests.kube.cluster import AGAIN

VOLUME_BYTES = 4 << 20
PATIENCE_S = 60.0

T = TypeVar("T")


@dataclass(frozen=True)
class Sizes:
    """How many lives in the shorter and in the longer run, how many volumes exist at once, how many callers."""

    warm_up: int = 100
    few: int = 200
    many: int = 2000
    floor: int = 300
    crowd: int = 2000
    callers: int = 50


QUICK = Sizes(warm_up=5, few=10, many=30, floor=10, crowd=40, callers=8)


class ChurnBench:
    """One run. `say` tells a person what is being measured."""

    def __init__(self, cluster: MeasuredCluster, sizes: Sizes, say: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._sizes = sizes
        self._say = say
        self._names = iter(range(10**9))
        self._repeated = 0

    async def run(self) -> Churn:
        sizes = self._sizes
        self._say("starting an API server, a node and a controller")
        client = await self._cluster.start()
        bare.install(self._cluster.plane)
        await self._lives(client, sizes.warm_up, (NODE, CONTROLLER))
        await self._floor()
        floors = [await self._floor()]
        few = await self._lives(client, sizes.few, (NODE, CONTROLLER))
        floors.append(await self._floor())
        many = await self._lives(client, sizes.many, (NODE, CONTROLLER))
        floors.append(await self._floor())
        crowd = await self._crowd(client)
        self._say("the same beside a node that has no part in it")
        await self._cluster.start_node(BYSTANDER)
        await asyncio.to_thread(self._cluster.cordon, BYSTANDER)
        beside = await self._lives(client, sizes.few, (NODE, CONTROLLER, BYSTANDER))
        await client.close()
        return Churn(
            target=self._cluster.target.kind,
            cpus=os.cpu_count() or 0,
            callers=sizes.callers,
            floors=floors,
            few=few,
            many=many,
            crowd=crowd,
            beside=beside,
            repeated=self._repeated,
        )

    async def _floor(self) -> float:
        """Lives per second of the bare writes."""
        count = self._sizes.floor
        self._say(f"{count:,} lives of bare writes")
        seconds = await bare.lives(self._cluster.plane, self._fresh(count), self._sizes.callers)
        return round(count / seconds, 1)

    async def _lives(self, client: CsiClient, count: int, processes: tuple[str, ...]) -> Lives:
        self._say(f"{count:,} lives, {self._sizes.callers} at a time")
        taken: Timings = {step: [] for step in STEPS}

        async def life(name: str) -> None:
            volume = await self._asked(taken["create"], lambda: _create(client, name))
            await self._asked(taken["publish"], lambda: client.publish(volume, NODE, block=True))
            await self._asked(taken["unpublish"], lambda: client.unpublish(volume, NODE))
            await self._asked(taken["delete"], lambda: client.delete_volume(volume))

        meter = await _Meter.begin(self._cluster, (*processes, *API), processes)
        seconds = await pooled(self._fresh(count), self._sizes.callers, life)
        told, found = await meter.end(count)
        return Lives(
            count=count,
            per_second=round(count / seconds, 1),
            requests=_per(told.requests, count),
            watch_events=round(told.watch_events / count, 2),
            watch_bytes=round(told.watch_bytes / count),
            processes=found,
            calls={step: Latency.of(values) for step, values in taken.items()},
        )

    async def _crowd(self, client: CsiClient) -> Crowd:
        """Each call for all of many volumes: what the first tenth and the last tenth of them cost."""
        volumes: dict[str, str] = {}
        names = self._fresh(self._sizes.crowd)

        async def create(name: str) -> None:
            volumes[name] = await _create(client, name)

        steps: dict[str, Callable[[str], Awaitable[object]]] = {
            "create": create,
            "publish": lambda name: client.publish(volumes[name], NODE, block=True),
            "unpublish": lambda name: client.unpublish(volumes[name], NODE),
            "delete": lambda name: client.delete_volume(volumes[name]),
        }
        found, rss = {}, {}
        for step, work in steps.items():
            self._say(f"{step} of {len(names):,} volumes")
            tenth = len(names) // 10
            first = await self._part(names[:tenth], work)
            await self._part(names[tenth:-tenth], work)
            found[step] = Crowded(first, await self._part(names[-tenth:], work))
            rss[step] = {name: round(self._cluster.cost(name)[1], 1) for name in (NODE, CONTROLLER)}
        return Crowd(len(names), found, rss)

    async def _part(self, names: list[str], work: Callable[[str], Awaitable[object]]) -> dict[str, float]:
        """Per call: milliseconds of CPU of each process, p50 in milliseconds, requests, bytes of watches."""
        taken: list[float] = []

        async def one(name: str) -> None:
            await self._asked(taken, lambda: work(name))

        meter = await _Meter.begin(self._cluster, (NODE, CONTROLLER), ())
        await pooled(names, self._sizes.callers, one)
        told, processes = await meter.end(len(names))
        cpu = {f"{each.name} CPU ms": each.cpu_ms for each in processes}
        return {
            "p50 ms": Latency.of(taken).p50,
            **cpu,
            "requests": round(told.requests.total() / len(names), 2),
            "watch bytes": round(told.watch_bytes / len(names)),
        }

    async def _asked(self, into: list[float], call: Callable[[], Awaitable[T]]) -> T:
        """As sidecars do: what may still be under way is asked again."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await timed(into, call())
            except CallFailed as error:
                if error.code not in AGAIN or time.monotonic() > deadline:
                    raise
            self._repeated += 1

    def _fresh(self, count: int) -> list[str]:
        return [f"churn-{next(self._names)}" for _ in range(count)]


class _Meter:
    """What processes and the API server have counted between two moments."""

    def __init__(self, cluster: MeasuredCluster) -> None:
        self._cluster = cluster
        self._told = Told()
        self._asked: dict[str, Counter[tuple[str, str]]] = {}
        self._costs: dict[str, tuple[float, float]] = {}

    @classmethod
    async def begin(cls, cluster: MeasuredCluster, names: tuple[str, ...], asking: tuple[str, ...]) -> _Meter:
        """`asking`: those that are to say themselves what they asked of the API."""
        meter = cls(cluster)
        meter._told = await asyncio.to_thread(cluster.told)
        meter._asked = await meter._requests(asking)
        meter._costs = {name: cluster.cost(name) for name in names}  # last: being asked costs something, too
        return meter

    async def _requests(self, names: Iterable[str]) -> dict[str, Counter[tuple[str, str]]]:
        return {name: await self._cluster.requests(name) for name in names}

    async def end(self, count: int) -> tuple[Told, list[Process]]:
        """The difference, that of the processes per one of `count`."""
        costs = {name: self._cluster.cost(name) for name in self._costs}
        now = await asyncio.to_thread(self._cluster.told)
        asked = await self._requests(self._asked)
        found = []
        for name, (cpu_s, rss_mib) in costs.items():
            requests = asked[name] - self._asked[name] if name in asked else Counter[tuple[str, str]]()
            cpu_ms = (cpu_s - self._costs[name][0]) * 1000 / count
            found.append(Process(_role(name), round(cpu_ms, 2), round(rss_mib, 1), _per(requests, count)))
        told = Told(
            now.requests - self._told.requests,
            now.watch_events - self._told.watch_events,
            now.watch_bytes - self._told.watch_bytes,
        )
        return told, found


async def _create(client: CsiClient, name: str) -> str:
    return await client.create_volume(name, VOLUME_BYTES, PARAMETERS, block=True)


def _role(name: str) -> str:
    return {NODE: "node", CONTROLLER: "controller", BYSTANDER: "bystander"}.get(name, name)


def _per(counted: Counter[tuple[str, str]], count: int) -> dict[str, float]:
    return {f"{verb} {what}": round(number / count, 3) for (what, verb), number in sorted(counted.items())}
