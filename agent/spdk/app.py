"""Calls about the target process itself: version, readiness, reactors, notifications."""

from __future__ import annotations

import msgspec

from agent.spdk.answers import given, read
from agent.spdk.client import Rpc


class Version(msgspec.Struct, frozen=True):
    """spdk_get_version. `version` is the full text, "SPDK v26.05 git sha1 d519b163cb"."""

    version: str


class Reactor(msgspec.Struct, frozen=True):
    """One CPU of the target: ticks in which its work was found done (`busy`) and not (`idle`), since the start.

    One that polls is never asleep, so its idle ticks burn the CPU too. `in_interrupt`: it sleeps when idle.
    """

    lcore: int
    busy: int
    idle: int
    in_interrupt: bool = False


class Reactors(msgspec.Struct, frozen=True):
    """framework_get_reactors: `pid` of the target, `tick_rate` of its clock in Hz."""

    pid: int
    tick_rate: int
    reactors: tuple[Reactor, ...] = ()

    @property
    def sleeps(self) -> bool:
        """Whether the target was started with --interrupt-mode: no CPU of it polls."""
        return bool(self.reactors) and all(each.in_interrupt for each in self.reactors)


class Poller(msgspec.Struct, frozen=True):
    """Something that a thread runs again and again: each time around (a period of 0), or each `period_ticks`."""

    name: str
    id: int
    run_count: int
    busy_count: int = 0
    period_ticks: int = 0


class Thread(msgspec.Struct, frozen=True):
    """A thread of thread_get_pollers."""

    name: str
    id: int
    active_pollers: tuple[Poller, ...] = ()
    timed_pollers: tuple[Poller, ...] = ()


class Pollers(msgspec.Struct, frozen=True):
    """thread_get_pollers; `tick_rate` in Hz."""

    tick_rate: int
    threads: tuple[Thread, ...] = ()


class Notification(msgspec.Struct, frozen=True):
    """notify_get_notifications: `type` is bdev_register, bdev_unregister or bdev_resize, `ctx` the bdev's name."""

    id: int
    type: str
    ctx: str


async def version(rpc: Rpc, *, timeout_s: float | None = None) -> str:
    """Version text of the target (spdk_get_version)."""
    return read("spdk_get_version", await rpc.call("spdk_get_version", timeout_s=timeout_s), Version).version


async def wait_init(rpc: Rpc, *, timeout_s: float | None = None) -> None:
    """Return when the target has started all its subsystems (framework_wait_init)."""
    await rpc.call("framework_wait_init", timeout_s=timeout_s)


async def reactors(rpc: Rpc) -> Reactors:
    """The target's pid and clock (framework_get_reactors)."""
    return read("framework_get_reactors", await rpc.call("framework_get_reactors"), Reactors)


async def pollers(rpc: Rpc) -> Pollers:
    """What each thread of the target runs again and again (thread_get_pollers)."""
    return read("thread_get_pollers", await rpc.call("thread_get_pollers"), Pollers)


async def methods(rpc: Rpc) -> list[str]:
    """Names of the methods that can be called now (rpc_get_methods)."""
    return read("rpc_get_methods", await rpc.call("rpc_get_methods", {"current": True}), list[str])


async def notification_types(rpc: Rpc) -> list[str]:
    """Kinds of notifications the target can give (notify_get_types)."""
    return read("notify_get_types", await rpc.call("notify_get_types"), list[str])


async def notifications(rpc: Rpc, *, first_id: int = 0, limit: int | None = None) -> list[Notification]:
    """At most `limit` notifications from `first_id` on, oldest first (notify_get_notifications).

    The target keeps the last 1,024; ids begin at 0 with each start of the target.
    """
    params = given(id=first_id, max=limit)
    return read("notify_get_notifications", await rpc.call("notify_get_notifications", params), list[Notification])
