"""Calls about raid1 bdevs. Always without superblock: membership is kept by the agent, not on the members."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from agent.spdk import bdev
from agent.spdk.answers import given, read
from agent.spdk.bdev import RaidMember, RaidPart, RaidProcess, RaidProgress
from agent.spdk.client import Rpc

__all__ = ["RaidInfo", "RaidMember", "RaidPart", "RaidProcess", "RaidProgress"]

Category = Literal["all", "online", "configuring", "offline"]


class RaidInfo(msgspec.Struct, frozen=True):
    """bdev_raid_get_bdevs. `state`: online, configuring, offline; `process` is a running rebuild."""

    name: str
    uuid: str
    state: str
    raid_level: str
    superblock: bool
    num_base_bdevs: int
    num_base_bdevs_operational: int
    base_bdevs_list: tuple[RaidMember, ...] = ()
    process: RaidProcess | None = None


async def create(rpc: Rpc, name: str, base_bdevs: Sequence[str], *, uuid: str | None = None) -> None:
    """Assemble a raid1 over the named bdevs. -17 exists, -1 a member that does not exist."""
    params = given(name=name, raid_level="raid1", base_bdevs=list(base_bdevs), superblock=False, uuid=uuid)
    await rpc.call("bdev_raid_create", params)


async def delete(rpc: Rpc, name: str) -> None:
    """Take the raid apart; its members and their data stay. -19 absent."""
    await rpc.call("bdev_raid_delete", {"name": name})


async def get(rpc: Rpc, name: str) -> RaidPart | None:
    """The raid bdev of that name, None when there is none. One that is not online has no bdev: see `list_all`."""
    found = await bdev.get(rpc, name)
    return found.raid if found else None


async def list_all(rpc: Rpc, category: Category = "all") -> list[RaidInfo]:
    """The raids in that state."""
    return read("bdev_raid_get_bdevs", await rpc.call("bdev_raid_get_bdevs", {"category": category}), list[RaidInfo])


async def add_base(rpc: Rpc, name: str, base_bdev: str) -> None:
    """Fill an empty slot and begin rebuilding onto it: every block is written. -22 no such bdev."""
    await rpc.call("bdev_raid_add_base_bdev", {"raid_bdev": name, "base_bdev": base_bdev})


async def remove_base(rpc: Rpc, base_bdev: str) -> None:
    """Take a member out of the raid it is in; the raid goes on with the others."""
    await rpc.call("bdev_raid_remove_base_bdev", {"name": base_bdev})
