"""The measurements, in the order that needs the fewest volumes to be made."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from agent.csi.client import CsiClient
from tests.bench import agent as csi
from tests.bench import raw
from tests.bench.agent import Agent
from tests.bench.raw import MIB, Place, RawClient
from tests.bench.results import Growth, Latency, Rate, Recovery, Results, Usage
from tests.bench.target import Target, free_port

VOLUME_BYTES = 64 * MIB
IDLE_S = 2.0


@dataclass(frozen=True)
class Sizes:
    """How much is measured. `lives`: volume lives per repeat for each number of callers."""

    lives: Mapping[int, int] = field(default_factory=lambda: {1: 30, 8: 240, 64: 1280})
    repeats: int = 3
    steps: int = 40
    few: int = 10
    many: int = 2000
    recovered: int = 1000
    callers: int = 64
    disk: str = "256GiB"


QUICK = Sizes(lives={1: 4, 8: 16}, repeats=1, steps=4, few=2, many=20, recovered=10, callers=8, disk="20GiB")


class Bench:
    """One run against one target. `say` tells a person what is being measured."""

    def __init__(self, folder: Path, target: Target, sizes: Sizes, say: Callable[[str], None]) -> None:
        self._target = target
        self._sizes = sizes
        self._say = say
        self._port = free_port(target.address)
        self._agent = Agent(folder, target.socket, target.address, self._port, sizes.disk)
        self._names = iter(range(10**9))

    async def run(self) -> Results:
        try:
            return await self._run()
        finally:
            await self._agent.stop()
            await self._target.kill()

    async def _run(self) -> Results:
        sizes = self._sizes
        await self._target.start()
        client = await self._agent.start()
        rpc = await RawClient.connect(self._target.socket)
        version = (await rpc.call("spdk_get_version"))["version"]
        pinned = f", the target alone on number {self._target.cpu}" if self._target.real else ""
        results = Results(self._target.kind, version, f"{os.cpu_count()}{pinned}")
        place = await self._place(rpc)
        start_mib = self._agent.usage()[1]
        await self._warm_up(client, rpc, place)
        kept = await self._create(client, 0, sizes.few)
        few_mib = self._agent.usage()[1]
        for callers, count in sizes.lives.items():
            results.rates.append(await self._rate(client, rpc, place, callers, count))
        await self._alone(results, client, rpc, place, kept[0])
        few = await self._steps(client, rpc, place)
        self._say(f"creating {sizes.many - sizes.few:,} volumes")
        kept += await self._create(client, sizes.few, sizes.many)
        many = await self._steps(client, rpc, place)
        results.growth = Growth(sizes.few, sizes.many, few[0], many[0], few[1], many[1], few[2], many[2])
        many_mib, idle = self._agent.usage()[1], await self._idle()
        await csi.pooled(kept[sizes.recovered :], sizes.callers, client.delete_volume)
        await csi.pooled(kept[: sizes.recovered], sizes.callers, lambda v: _publish(client, v))
        rpc.close()
        results.recovery = await self._recovery(client, kept[: sizes.recovered])
        results.usage = Usage(start_mib, few_mib, many_mib, self._last_rss, idle)
        return results

    async def _place(self, rpc: RawClient) -> Place:
        (store,) = await rpc.call("bdev_lvol_get_lvstores")
        return Place(store["name"], self._target.address, self._port, VOLUME_BYTES)

    def _fresh(self, count: int) -> list[str]:
        return [f"bench-{next(self._names)}" for _ in range(count)]

    async def _warm_up(self, client: CsiClient, rpc: RawClient, place: Place) -> None:
        await csi.lives(client, self._fresh(8), VOLUME_BYTES, 4)
        await raw.lives(rpc, place, self._fresh(8), 4)

    async def _create(self, client: CsiClient, first: int, end: int) -> list[str]:
        names = [f"kept-{i}" for i in range(first, end)]
        return await csi.create(client, names, VOLUME_BYTES, self._sizes.callers, publish=False)

    async def _rate(self, client: CsiClient, rpc: RawClient, place: Place, callers: int, count: int) -> Rate:
        """Agent and floor in turn, so that both see the same disturbances."""
        ours, floor, calls, agent_s, client_s = [], [], csi.Timings(), 0.0, 0.0
        for repeat in range(self._sizes.repeats):
            self._say(f"volume lives at {callers} callers, {repeat + 1} of {self._sizes.repeats}")
            before, own = self._agent.usage()[0], time.process_time()
            seconds, taken = await csi.lives(client, self._fresh(count), VOLUME_BYTES, callers)
            client_s += time.process_time() - own
            agent_s += self._agent.usage()[0] - before
            ours.append(round(count / seconds, 1))
            for step, values in taken.items():
                calls.setdefault(step, []).extend(values)
            floor.append(round(count / await raw.lives(rpc, place, self._fresh(count), callers), 1))
        return Rate(
            callers=callers,
            agent=median(ours),
            floor=median(floor),
            repeats_agent=ours,
            repeats_floor=floor,
            agent_cpu_ms_per_life=round(agent_s * 1000 / count / self._sizes.repeats, 3),
            client_cpu_ms_per_life=round(client_s * 1000 / count / self._sizes.repeats, 3),
            calls={step: Latency.of(values) for step, values in calls.items()},
        )

    async def _alone(self, results: Results, client: CsiClient, rpc: RawClient, place: Place, volume: str) -> None:
        """The same life call by call with the official client, and the queries."""
        count = self._sizes.steps
        self._say("the same, call by call with the official client")
        started = time.perf_counter()
        taken = await asyncio.to_thread(raw.official_lives, self._target.socket, place, self._fresh(count))
        results.official_lives_per_second = round(count / (time.perf_counter() - started), 1)
        results.official = _latencies(taken)
        results.floor_steps = _latencies(await raw.steps(rpc, place, self._fresh(count)))
        results.queries = _latencies(await csi.queries(client, volume, VOLUME_BYTES, count))

    async def _steps(
        self, client: CsiClient, rpc: RawClient, place: Place
    ) -> tuple[dict[str, Latency], dict[str, Latency], float]:
        """Each call at one caller with the volumes there are now: agent, floor, CPU ms of the agent per life."""
        self._say("calls at one caller")
        count, before = self._sizes.steps, self._agent.usage()[0]
        _, ours = await csi.lives(client, self._fresh(count), VOLUME_BYTES, 1)
        cpu_ms = (self._agent.usage()[0] - before) * 1000 / count
        floor = await raw.steps(rpc, place, self._fresh(count))
        return _latencies(ours), _latencies(floor), round(cpu_ms, 3)

    async def _idle(self) -> float:
        before = self._agent.usage()[0]
        await asyncio.sleep(IDLE_S)
        return round((self._agent.usage()[0] - before) / IDLE_S * 100, 2)

    # --- recovery ----------------------------------------------------------------------------------------------

    async def _recovery(self, client: CsiClient, volumes: list[str]) -> Recovery:
        self._say(f"kill -9 of the target with {len(volumes):,} exported volumes, the agent rebuilds")
        await self._target.kill()
        await csi.until_probe(client, False)
        started = time.monotonic()
        answered = await self._target.start()
        agent_s = await csi.until_probe(client, True) - answered
        await self._verify_exports(len(volumes))
        self._last_rss = self._agent.usage()[1]
        await client.close()
        await self._agent.stop()
        self._say("kill -9 of the target again, the raw client rebuilds")
        await self._target.kill()
        floor_s = await self._rebuild(await self._target.start())
        await self._verify_exports(len(volumes))
        return Recovery(len(volumes), round(agent_s, 3), round(floor_s, 3), round(answered - started, 3))

    async def _rebuild(self, answered: float) -> float:
        """Seconds since `answered` until the raw client has exported every lvol again."""
        rpc = await RawClient.connect(self._target.socket)
        await rpc.round(
            [
                ("nvmf_create_transport", {"trtype": "TCP"}),
                ("bdev_aio_create", {"name": "base", "filename": str(self._agent.disk), "block_size": 4096}),
            ]
        )
        await rpc.call("bdev_wait_for_examine")
        place = await self._place(rpc)
        names = [lvol["name"] for lvol in await rpc.call("bdev_lvol_get_lvols", {"lvs_name": place.lvs_name})]
        await raw.rebuild(rpc, place, names, self._sizes.callers)
        rpc.close()
        return time.monotonic() - answered

    async def _verify_exports(self, count: int) -> None:
        """A recovery that left something out is no recovery."""
        rpc = await RawClient.connect(self._target.socket)
        found = await rpc.call("nvmf_get_subsystems")
        rpc.close()
        whole = [s for s in found if s["hosts"] and s["listen_addresses"] and s.get("namespaces")]
        if len(whole) != count:
            raise RuntimeError(f"{len(whole)} of {count} volumes are exported after the recovery")

    _last_rss = 0.0


async def _publish(client: CsiClient, volume: str) -> None:
    await client.publish(volume, csi.NODE, block=True)


def _latencies(taken: Mapping[str, list[float]]) -> dict[str, Latency]:
    return {name: Latency.of(values) for name, values in taken.items()}
