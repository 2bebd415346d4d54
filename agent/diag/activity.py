"""How busy a target is, and what keeps it awake: two looks at it, some time apart. Nothing asks for that by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from agent.spdk import app, nvmf
from agent.spdk.client import Client
from agent.spdk.nature import Mode, Nature, Program

PERIOD_S = 1.0
"""Between the two looks."""

SLEEPING_MAX = 0.03
"""Part of a core below which a target in interrupt mode is said to sleep: the bar of docs/sizing.md."""

_SLEEPS = frozenset({"bdev_aio_group_poll", "bdev_nvme_poll", "nvmf_TCP", "nvmf_tcp_accept"})
"""Pollers without a period that wait for an event in interrupt mode."""


@dataclass(frozen=True, slots=True)
class Activity:
    """`cores`: CPU time that the process took, a second of it being 1. None: it is not visible from here.

    `busy`: part of the time of its CPUs in which it had something to do: by its own account when it polls (the rest is
    burnt), else by its CPU time, since in interrupt mode SPDK counts nothing. None: not known.

    `awake`: what runs without a pause in interrupt mode.
    """

    cpus: int
    cores: float | None
    busy: float | None
    hosts: int
    """Queues of hosts for I/O."""
    io_per_s: float
    calls_per_s: float
    """Calls of this very agent, besides those of looking."""
    awake: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Look:
    at_s: float
    reactors: app.Reactors
    hosts: nvmf.Stats
    cpu_s: float | None
    calls: int


async def watch(rpc: Client, period_s: float = PERIOD_S) -> Activity:
    """Look at the target twice, `period_s` apart. Takes that long; raises what the calls raise."""
    names = await _polled(rpc)
    before = await _look(rpc)
    await asyncio.sleep(period_s)
    return _between(before, await _look(rpc), names)


def explained(target: Nature, seen: Activity) -> str:
    """What keeps a target in interrupt mode awake, and the remedy; empty: it sleeps, or is not meant to."""
    if target.mode is not Mode.INTERRUPT or target.program is Program.EMBEDDED:
        return ""
    if target.wakes_for_nothing:
        return "its iSCSI service polls in interrupt mode too: start nvmf_tgt, which has none, in its place"
    if "bdev_uring_group_poll" in seen.awake:
        return "disks are reached by io_uring, which polls: restart the target, and the agent attaches them by AIO"
    if seen.cores is None or seen.cores <= SLEEPING_MAX * seen.cpus:
        return ""
    if seen.awake:
        return f"these of its parts poll: {', '.join(seen.awake)}"
    return f"{seen.io_per_s:.0f} operations a second of hosts, {seen.calls_per_s:.0f} calls a second of the agent"


def described(target: Nature, seen: Activity) -> str:
    """Busy and idle share in words."""
    cpus = f"{seen.cpus} CPU{'s' if seen.cpus != 1 else ''}"
    taken = "its CPU time is not visible from here" if seen.cores is None else f"takes {seen.cores:.1%} of a core"
    if seen.busy is None:
        return f"{taken}, {cpus}"
    rest = "burnt in waiting" if target.mode is Mode.POLLING else "asleep"
    return f"busy {seen.busy:.1%}, {rest} {1 - seen.busy:.1%} of {cpus}; {taken}"


async def _polled(rpc: Client) -> tuple[str, ...]:
    """Names of what runs without a pause, but for what waits for an event in interrupt mode."""
    found = await app.pollers(rpc)
    return tuple(sorted({each.name for thread in found.threads for each in thread.active_pollers} - _SLEEPS))


async def _look(rpc: Client) -> _Look:
    cpu_s, at_s = _cpu_s(rpc.peer_pid), time.monotonic()
    calls = sum(each.total for each in dict(rpc.durations.series).values())
    reactors, hosts = await asyncio.gather(app.reactors(rpc), nvmf.stats(rpc))
    return _Look(at_s, reactors, hosts, cpu_s, calls)


def _cpu_s(pid: int | None) -> float | None:
    """CPU time of the process so far; None when it cannot be seen (another PID namespace)."""
    if not pid:
        return None
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return None
    return float(times.user + times.system)


_CALLS_OF_A_LOOK = 2


def _between(before: _Look, after: _Look, polled: tuple[str, ...]) -> Activity:
    seconds, cpus = after.at_s - before.at_s, len(after.reactors.reactors) or 1
    cores = None if before.cpu_s is None or after.cpu_s is None else (after.cpu_s - before.cpu_s) / seconds
    busy = sum(each.busy for each in after.reactors.reactors) - sum(each.busy for each in before.reactors.reactors)
    idle = sum(each.idle for each in after.reactors.reactors) - sum(each.idle for each in before.reactors.reactors)
    own = busy / max(1, busy + idle)
    taken = None if cores is None else min(1.0, cores / cpus)
    return Activity(
        cpus=cpus,
        cores=cores,
        busy=taken if after.reactors.sleeps else own,
        hosts=after.hosts.io_queues,
        io_per_s=(after.hosts.completed - before.hosts.completed) / seconds,
        calls_per_s=max(0, after.calls - before.calls - _CALLS_OF_A_LOOK) / seconds,
        awake=polled if after.reactors.sleeps else (),
    )


async def told(rpc: Client, nature: Nature) -> Mapping[str, Any]:
    """What was seen in a second, and in words. Raises QuarryError."""
    seen = await watch(rpc)
    return asdict(seen) | {"described": described(nature, seen), "awake": explained(nature, seen)}
