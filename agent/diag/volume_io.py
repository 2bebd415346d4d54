"""I/O counters of exported volumes, read from the target when metrics are asked for, and for no longer than agreed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

from agent.diag.readings import Reading, VolumeIo
from agent.errors import QuarryError, RpcError
from agent.model import Volume
from agent.spdk import bdev
from agent.spdk.client import Rpc

VOLUMES_MAX = 1024
"""Each has eight time series. Others are left out, those with the smallest ids are told, and the metrics say so."""

TIME_LIMIT_S = 2.0
GROUP = 64
"""Volumes asked for in one call: an answer of a few milliseconds of work, between which other calls have their turn."""


def exported(volumes: Sequence[Volume]) -> Mapping[str, Volume]:
    """The volumes that some host may use, by the name of their bdev, which is the UUID of the lvol."""
    return {
        replica.lvol_uuid: volume
        for volume in sorted(volumes, key=lambda each: each.meta.name)
        if volume.spec.attachments and not volume.meta.deleting
        for replica in volume.status.replicas
        if replica.lvol_uuid
    }


async def read(rpc: Rpc, volumes: Sequence[Volume]) -> Reading:
    """Counters of `volumes` as far as they are exported (bdev_get_iostat). Never fails: what is missing is counted."""
    wanted = exported(volumes)
    names = list(wanted)[:VOLUMES_MAX]
    reading = Reading()
    deadline = time.monotonic() + TIME_LIMIT_S
    for start in range(0, len(names), GROUP):
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            break
        try:
            async with asyncio.timeout(left_s):
                stats = await _group(rpc, names[start : start + GROUP])
        except (QuarryError, TimeoutError):
            break  # the target is away or busy: the others would not fare better
        for found in stats:
            reading.volumes += [
                VolumeIo(wanted[stat.name], stat, found.tick_rate) for stat in found.bdevs if stat.name in wanted
            ]
    reading.omitted = len(wanted) - len(reading.volumes)
    return reading


async def _group(rpc: Rpc, names: Sequence[str]) -> list[bdev.IoStats]:
    """One call for all. One bdev that is gone fails it: then each is asked for by itself. Raises QuarryError."""
    try:
        return [await bdev.iostat(rpc, names)]
    except RpcError:
        results = await asyncio.gather(*(bdev.iostat(rpc, [name]) for name in names), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, RpcError):
            raise result
    return [result for result in results if isinstance(result, bdev.IoStats)]
