"""A target with nothing to do, and with one host that has: polling and interrupt, on the same kind of disk.

One agent exports `volumes`, of which `hosts` have a host that is connected and does nothing. Then one of them reads and
writes. The host is the project's own NVMe/TCP initiator, in this process: it can be had everywhere, and its own cost
(Python) is the same on either side, so latencies compare with each other and not with a kernel's.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil

from agent.nvmf.initiator import Controller, connect
from agent.spdk import app, bdev, nvmf
from agent.spdk.client import Client
from agent.volumes.rules.names import volume_nqn
from tests.bench import agent as csi
from tests.bench.agent import Agent
from tests.bench.raw import MIB
from tests.bench.results import Verdict
from tests.bench.target import Target, free_port

BAR_PERCENT = 3.0
"""Of a core: what a target in interrupt mode may take with all volumes exported and all hosts connected and idle."""

VOLUME_BYTES = 16 * MIB
BLOCK = 4096
SPREAD = 1024
"""Blocks that are read and written, all of which were written before."""


@dataclass(frozen=True)
class Sizes:
    """`seconds` of idling, and of load at each depth."""

    volumes: int = 100
    hosts: int = 10
    seconds: float = 20.0
    depths: tuple[int, ...] = (1, 32)


QUICK = Sizes(volumes=10, hosts=2, seconds=2.0)


@dataclass(frozen=True)
class Load:
    """One host at one depth: operations a second, microseconds of each (median), CPU of the target in percent."""

    depth: int
    operation: str
    per_second: float
    median_us: float
    target_percent: float


@dataclass(frozen=True)
class Idle:
    """CPU in percent of one core, while nobody does anything."""

    target: str
    mode: str
    version: str
    disk: str
    volumes: int
    hosts: int
    bare_percent: float
    """Of the target before it had anything."""
    target_percent: float
    agent_percent: float
    calls_per_second: float
    """Of the agent to the target."""
    loads: list[Load] = field(default_factory=list)


def verdicts(found: list[Idle], sizes: Sizes) -> list[Verdict]:
    """The bar is for a real target in interrupt mode."""
    return [
        Verdict(
            f"{each.target} in interrupt mode, {each.volumes} exported, {each.hosts} idle hosts: % of a core, at most",
            each.target_percent,
            BAR_PERCENT,
            each.target_percent <= BAR_PERCENT and each.volumes >= sizes.volumes and each.hosts >= sizes.hosts,
        )
        for each in found
        if each.mode == "interrupt" and each.target != "embedded"
    ]


class IdleBench:
    """One target: started, filled, left alone, then used."""

    def __init__(self, folder: Path, target: Target, sizes: Sizes, say: Callable[[str], None]) -> None:
        self._target = target
        self._sizes = sizes
        self._say = say
        self._port = free_port(target.address)
        self._agent = Agent(folder, target.socket, target.address, self._port, "20GiB")

    async def run(self) -> Idle:
        """Leaves nothing running."""
        try:
            return await self._run()
        finally:
            await self._agent.stop()
            await self._target.kill()

    async def _run(self) -> Idle:
        sizes, mode = self._sizes, self._target.mode
        await self._target.start()
        self._say(f"{self._target.name}, {mode}: with nothing")
        bare, _, _ = await self._left_alone()
        client = await self._agent.start()
        names = [f"idle-{number}" for number in range(sizes.volumes)]
        volumes = await csi.create(client, names, VOLUME_BYTES, 8, publish=True)
        async with Client(self._target.socket) as rpc, AsyncExitStack() as hosts:
            await rpc.wait_connected(30)
            version, disk = await _described(rpc)
            host = await _host_of(rpc, volumes[0])
            connected = [
                await _connected(hosts, self._target.address, self._port, volume_nqn(each), host)
                for each in volumes[: sizes.hosts]
            ]
            self._say(f"{self._target.name}, {mode}: {sizes.volumes} exported, {sizes.hosts} hosts idle")
            idle, agent, calls = await self._left_alone()
            loads = [each for depth in sizes.depths for each in await self._used(connected[0], depth)]
        return Idle(
            self._target.name, mode, version, disk, len(volumes), len(connected), bare, idle, agent, calls, loads
        )

    async def _left_alone(self) -> tuple[float, float, float]:
        """CPU of target and agent in percent of a core, and calls a second of the agent, over the time of idling."""
        assert self._target.process is not None
        target = psutil.Process(self._target.process.pid)
        agent = psutil.Process(self._agent.process.pid) if self._agent.process else None
        calls = await self._agent.calls() if agent else 0
        started, before, ours = time.monotonic(), _cpu_s(target), _cpu_s(agent)
        await asyncio.sleep(self._sizes.seconds)  # this is what is measured
        took = time.monotonic() - started
        shares = [round((_cpu_s(each) - was) / took * 100, 2) for each, was in ((target, before), (agent, ours))]
        made = (await self._agent.calls() - calls) / took if agent else 0.0
        return shares[0], shares[1], round(made, 2)

    async def _used(self, host: Controller, depth: int) -> list[Load]:
        (namespace,) = await host.namespaces()
        for number in range(SPREAD):
            await host.write(namespace.nsid, number * BLOCK, os.urandom(BLOCK))
        data = os.urandom(BLOCK)

        async def read(at: int) -> None:
            await host.read(namespace.nsid, at, BLOCK)

        async def write(at: int) -> None:
            await host.write(namespace.nsid, at, data)

        self._say(f"{self._target.name}, {self._target.mode}: reads and writes at depth {depth}")
        return [await self._measured(depth, name, each) for name, each in (("read", read), ("write", write))]

    async def _measured(self, depth: int, name: str, operation: Callable[[int], Awaitable[None]]) -> Load:
        assert self._target.process is not None
        target, taken = psutil.Process(self._target.process.pid), list[float]()
        started, before = time.monotonic(), _cpu_s(target)
        until = started + self._sizes.seconds / 4

        async def one(first: int) -> None:
            at = first
            while (began := time.monotonic()) < until:
                await operation(at % SPREAD * BLOCK)
                taken.append(time.monotonic() - began)
                at += 7919

        await asyncio.gather(*(one(number * 31) for number in range(depth)))
        took = time.monotonic() - started
        share = round((_cpu_s(target) - before) / took * 100, 1)
        return Load(depth, name, round(len(taken) / took), round(median(taken) * 1e6), share)


async def _connected(hosts: AsyncExitStack, address: str, port: int, nqn: str, host: str) -> Controller:
    made = await connect(address, port, nqn, host)
    hosts.push_async_callback(made.close)
    return made


async def _host_of(rpc: Client, volume: str) -> str:
    """The host that was let in."""
    found = await nvmf.get_subsystem(rpc, volume_nqn(volume))
    if found is None:
        raise RuntimeError(f"{volume} is not exported")
    return found.host_nqns[0]


async def _described(rpc: Client) -> tuple[str, str]:
    pools = await rpc.call("bdev_lvol_get_lvstores")
    base = await bdev.get(rpc, pools[0]["base_bdev"])
    return await app.version(rpc), base.product_name if base else "?"


def _cpu_s(process: psutil.Process | None) -> float:
    if process is None:
        return 0.0
    times = process.cpu_times()
    return float(times.user + times.system)
