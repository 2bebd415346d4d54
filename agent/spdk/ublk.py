"""Calls about ublk: bdevs as block devices of the machine that the target runs on.

Only `spdk_tgt` has them; another target answers -32601 (method not found).
"""

from __future__ import annotations

import errno

import msgspec

from agent.errors import RpcError
from agent.spdk.answers import given, read
from agent.spdk.client import Rpc

METHOD_NOT_FOUND = -32601
QUEUE_DEPTH = 128
STOP_TIMEOUT_S = 30.0
"""A device that stops is given 10 s by the target to end what is under way."""


class DiskInfo(msgspec.Struct, frozen=True):
    """ublk_get_disks. `bdev_name` is the bdev's name, for an lvol its UUID."""

    id: int
    ublk_device: str
    bdev_name: str
    queue_depth: int = 0
    num_queues: int = 0


async def create_target(rpc: Rpc) -> None:
    """Open the kernel's driver; needed once in the life of a target. -32603 when it is open, and when it cannot be."""
    await rpc.call("ublk_create_target", {})


async def start_disk(rpc: Rpc, bdev_name: str, ublk_id: int, *, num_queues: int = 1) -> None:
    """Make /dev/ublkb<id>. -19 no such bdev, or no target; -16 the target has the id; -95 too many.

    An id that the kernel has, but not this target, must not be asked for: the answer is -17, and the target *removes*
    that device, whoever uses it (measured). Any number of ids may be started for one bdev: it is ours to ask for one.
    """
    params = {"bdev_name": bdev_name, "ublk_id": ublk_id, "queue_depth": QUEUE_DEPTH, "num_queues": num_queues}
    await rpc.call("ublk_start_disk", params)


async def recover_disk(rpc: Rpc, bdev_name: str, ublk_id: int) -> None:
    """Serve a device whose target died. Answers when it has begun; what waited for the device goes on then.

    The target waits 3 s for the kernel to call the device quiesced. After that, or when another process still has it,
    it *removes* the device: look first. -16 the target has the id, -19 no such bdev or no target.
    """
    await rpc.call("ublk_recover_disk", {"bdev_name": bdev_name, "ublk_id": ublk_id})


async def stop_disk(rpc: Rpc, ublk_id: int) -> None:
    """Remove the device; answers when it is gone. -19 absent, -16 it is being started or stopped."""
    await rpc.call("ublk_stop_disk", {"ublk_id": ublk_id}, timeout_s=STOP_TIMEOUT_S)


async def get(rpc: Rpc, ublk_id: int) -> DiskInfo | None:
    """One device of this target, None when it has no such. `ublk_id` is at least 1: asked for 0 it tells of all."""
    try:
        result = await rpc.call("ublk_get_disks", {"ublk_id": ublk_id})
    except RpcError as error:
        if error.code == -errno.ENODEV:
            return None
        raise
    found = read("ublk_get_disks", result, list[DiskInfo])
    return found[0] if found else None


async def list_all(rpc: Rpc) -> list[DiskInfo]:
    """The devices of this target; at most as many as the kernel's driver allows (ublks_max, 64 unless changed)."""
    return read("ublk_get_disks", await rpc.call("ublk_get_disks", given()), list[DiskInfo])
