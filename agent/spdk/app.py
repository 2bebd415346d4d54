"""Calls about the target process itself: version, readiness, reactors, notifications."""

from __future__ import annotations

import msgspec

from agent.spdk.answers import given, read
from agent.spdk.client import Rpc


class Version(msgspec.Struct, frozen=True):
    """spdk_get_version. `version` is the full text, "SPDK v26.05 git sha1 d519b163cb"."""

    version: str


class Reactors(msgspec.Struct, frozen=True):
    """framework_get_reactors: `pid` of the target, `tick_rate` of its clock in Hz."""

    pid: int
    tick_rate: int


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
