"""What the demo takes back from a running SPDK target that it was shown on (`--spdk-socket`)."""

from __future__ import annotations

from pathlib import Path

from agent.model import Disk, Meta
from agent.spdk import bdev, lvol, nvmf
from agent.spdk.client import Client

_TIMEOUT_S = 5.0


async def give_back(socket: Path, nqn: str, disks: list[str]) -> None:
    """Remove the subsystem `nqn`, the pools and the bdevs of `disks`, by identity; the agent is gone by then.

    Nothing else in the target is touched. The NVMe/TCP transport stays: it belongs to the target, and others may be
    using it by now. Raises Unavailable when the target is gone: then so is everything in it.
    """
    rpc = Client(socket)
    await rpc.start()
    try:
        await rpc.wait_connected(_TIMEOUT_S)
        if await nvmf.get_subsystem(rpc, nqn):
            await nvmf.delete_subsystem(rpc, nqn)
        for disk in (Disk(Meta(name)) for name in disks):
            if await lvol.get_lvstore(rpc, disk.pool_name):
                await lvol.delete_lvstore(rpc, disk.pool_name)
            if await bdev.get(rpc, disk.bdev_name):
                await bdev.aio_delete(rpc, disk.bdev_name)
    finally:
        await rpc.close()
