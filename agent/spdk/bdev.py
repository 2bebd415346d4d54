"""Calls about block devices of any kind: base bdevs, lookups, QoS limits, I/O statistics, latency histograms."""

from __future__ import annotations

import asyncio
import base64
import errno
import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from agent.errors import InvalidArgument, RpcError
from agent.spdk.answers import given, read
from agent.spdk.client import Rpc


class RateLimits(msgspec.Struct, frozen=True):
    """Limits of a bdev in I/O operations and MiB a second; 0 is unlimited."""

    rw_ios_per_sec: int = 0
    rw_mbytes_per_sec: int = 0
    r_mbytes_per_sec: int = 0
    w_mbytes_per_sec: int = 0


class LvolPart(msgspec.Struct, frozen=True):
    """What bdev_get_bdevs tells about a logical volume."""

    lvol_store_uuid: str
    base_bdev: str
    thin_provision: bool
    num_allocated_clusters: int
    snapshot: bool = False
    clone: bool = False
    base_snapshot: str | None = None
    clones: tuple[str, ...] = ()


class RaidMember(msgspec.Struct, frozen=True):
    """A slot of a raid; `name` is None while it is empty. Sizes are in blocks."""

    name: str | None
    is_configured: bool


class RaidProgress(msgspec.Struct, frozen=True):
    blocks: int = 0
    percent: int = 0


class RaidProcess(msgspec.Struct, frozen=True):
    """A running rebuild: onto which member, how far."""

    type: str
    target: str
    progress: RaidProgress = RaidProgress()


class RaidPart(msgspec.Struct, frozen=True):
    """What bdev_get_bdevs and bdev_raid_get_bdevs tell about a raid. `state`: online, configuring, offline."""

    state: str
    raid_level: str
    superblock: bool
    num_base_bdevs: int
    num_base_bdevs_operational: int
    base_bdevs_list: tuple[RaidMember, ...] = ()
    process: RaidProcess | None = None


class AioPart(msgspec.Struct, frozen=True):
    filename: str


class NvmeController(msgspec.Struct, frozen=True):
    serial_number: str = ""
    model_number: str = ""


class NvmeAddress(msgspec.Struct, frozen=True):
    trtype: str = ""
    traddr: str = ""


class NvmePart(msgspec.Struct, frozen=True):
    """One path to an NVMe namespace; `pci_address` only of a disk of this machine."""

    trid: NvmeAddress = NvmeAddress()
    ctrlr_data: NvmeController = NvmeController()
    pci_address: str = ""


class EmbeddedPart(msgspec.Struct, frozen=True):
    """What only the embedded target tells: the file that holds an lvol's data, for loop devices."""

    file: str


class DriverPart(msgspec.Struct, frozen=True):
    """What a kind of bdev tells about itself; only the part of its kind is there."""

    lvol: LvolPart | None = None
    raid: RaidPart | None = None
    aio: AioPart | None = None
    uring: AioPart | None = None
    nvme: tuple[NvmePart, ...] = ()
    embedded: EmbeddedPart | None = None


class BdevInfo(msgspec.Struct, frozen=True):
    """A block device (bdev_get_bdevs)."""

    name: str
    product_name: str
    block_size: int
    num_blocks: int
    uuid: str = ""
    aliases: tuple[str, ...] = ()
    claimed: bool = False
    assigned_rate_limits: RateLimits = RateLimits()
    driver_specific: DriverPart = DriverPart()

    @property
    def size_bytes(self) -> int:
        return self.block_size * self.num_blocks

    @property
    def lvol(self) -> LvolPart | None:
        return self.driver_specific.lvol

    @property
    def raid(self) -> RaidPart | None:
        return self.driver_specific.raid

    @property
    def filename(self) -> str | None:
        """Path of the file or device behind an AIO or uring bdev."""
        part = self.driver_specific.aio or self.driver_specific.uring
        return part.filename if part else None


# --- lookups ---


async def get(rpc: Rpc, name: str) -> BdevInfo | None:
    """The bdev with this name, alias (`lvstore/lvol`) or UUID; None when there is none (bdev_get_bdevs, -19)."""
    try:
        result = await rpc.call("bdev_get_bdevs", {"name": name})
    except RpcError as error:
        if error.code == -errno.ENODEV:
            return None
        raise
    found = read("bdev_get_bdevs", result, list[BdevInfo])
    return found[0] if found else None


async def list_all(rpc: Rpc) -> list[BdevInfo]:
    """All bdevs. Costs as much as there are bdevs: for audits, not for finding one."""
    return read("bdev_get_bdevs", await rpc.call("bdev_get_bdevs"), list[BdevInfo])


async def wait_for_examine(rpc: Rpc, *, timeout_s: float | None = None) -> None:
    """Return when all modules have looked at all new bdevs: lvstores on them are loaded (bdev_wait_for_examine)."""
    await rpc.call("bdev_wait_for_examine", timeout_s=timeout_s)


# --- base bdevs ---


async def aio_create(
    rpc: Rpc,
    name: str,
    filename: str,
    block_bytes: int | None = None,
    *,
    uuid: str | None = None,
    timeout_s: float | None = None,
) -> str:
    """A bdev over a file or block device by Linux AIO; returns its name. -17 taken, -2 no file, -22 bad block size."""
    params = given(name=name, filename=filename, block_size=block_bytes, uuid=uuid)
    return read("bdev_aio_create", await rpc.call("bdev_aio_create", params, timeout_s=timeout_s), str)


async def aio_delete(rpc: Rpc, name: str) -> None:
    """Remove the bdev, with everything on it; the data stay (bdev_aio_delete). -19 absent."""
    await rpc.call("bdev_aio_delete", {"name": name})


async def aio_rescan(rpc: Rpc, name: str) -> None:
    """Take over the size that the file has now (bdev_aio_rescan)."""
    await rpc.call("bdev_aio_rescan", {"name": name})


async def uring_create(
    rpc: Rpc,
    name: str,
    filename: str,
    block_bytes: int | None = None,
    *,
    uuid: str | None = None,
    timeout_s: float | None = None,
) -> str:
    """A bdev over a file or block device by io_uring; returns its name (bdev_uring_create)."""
    params = given(name=name, filename=filename, block_size=block_bytes, uuid=uuid)
    return read("bdev_uring_create", await rpc.call("bdev_uring_create", params, timeout_s=timeout_s), str)


async def uring_delete(rpc: Rpc, name: str) -> None:
    """Remove the bdev; the data stay (bdev_uring_delete). -19 absent."""
    await rpc.call("bdev_uring_delete", {"name": name})


async def uring_rescan(rpc: Rpc, name: str) -> None:
    """Take over the size that the file has now (bdev_uring_rescan)."""
    await rpc.call("bdev_uring_rescan", {"name": name})


async def malloc_create(
    rpc: Rpc, name: str, size_bytes: int, block_bytes: int = 4096, *, uuid: str | None = None
) -> str:
    """A bdev in the target's memory; returns its name (bdev_malloc_create)."""
    if size_bytes <= 0 or size_bytes % block_bytes:
        raise InvalidArgument("size_bytes", f"{size_bytes} bytes", f"use a positive multiple of {block_bytes}")
    params = given(name=name, num_blocks=size_bytes // block_bytes, block_size=block_bytes, uuid=uuid)
    return read("bdev_malloc_create", await rpc.call("bdev_malloc_create", params), str)


async def malloc_delete(rpc: Rpc, name: str) -> None:
    """Remove the bdev and its data (bdev_malloc_delete). -19 absent."""
    await rpc.call("bdev_malloc_delete", {"name": name})


# --- QoS ---

_QOS_RETRY_S = 0.01
_QOS_SETTLE_S = 0.5


async def set_qos(
    rpc: Rpc,
    name: str,
    *,
    rw_iops: int = 0,
    rw_mbps: int = 0,
    r_mbps: int = 0,
    w_mbps: int = 0,
    settle_s: float = _QOS_SETTLE_S,
) -> None:
    """Set all four limits, in I/O operations and MiB a second; 0 takes a limit away (bdev_set_qos_limit).

    SPDK answers -32602 while an earlier change settles, and it settles at once only on a bdev that is open, such as an
    exported one: limits of one that nobody has opened can be set once and not changed (measured, v26.05). So this
    repeats for `settle_s`, then raises that RpcError. -19: no such bdev. IOPS are rounded up to whole thousands.
    """
    params = {
        "name": name,
        "rw_ios_per_sec": rw_iops,
        "rw_mbytes_per_sec": rw_mbps,
        "r_mbytes_per_sec": r_mbps,
        "w_mbytes_per_sec": w_mbps,
    }
    loop = asyncio.get_running_loop()
    deadline = loop.time() + settle_s
    while True:
        try:
            await rpc.call("bdev_set_qos_limit", params)
            return
        except RpcError as error:
            if error.code != -32602 or loop.time() >= deadline:
                raise
        await asyncio.sleep(_QOS_RETRY_S)


# --- statistics ---


class IoStat(msgspec.Struct, frozen=True):
    """Counters of a bdev since it was made. Latencies are sums over all operations, in ticks of `tick_rate`."""

    name: str
    bytes_read: int = 0
    num_read_ops: int = 0
    bytes_written: int = 0
    num_write_ops: int = 0
    bytes_unmapped: int = 0
    num_unmap_ops: int = 0
    read_latency_ticks: int = 0
    write_latency_ticks: int = 0
    unmap_latency_ticks: int = 0
    io_error: dict[str, int] = {}
    """Failed operations by kind of error (`failed`, `aio_error`, ...)."""


class IoStats(msgspec.Struct, frozen=True):
    """bdev_get_iostat: `ticks` is the target's clock at the time of reading, `tick_rate` its frequency in Hz."""

    tick_rate: int
    ticks: int
    bdevs: tuple[IoStat, ...] = ()


async def iostat(rpc: Rpc, names: Sequence[str] | None = None) -> IoStats:
    """Counters of the named bdevs (at most 1,024), or of all (bdev_get_iostat)."""
    params: dict[str, Any] = given(names=list(names) if names is not None else None)
    return read("bdev_get_iostat", await rpc.call("bdev_get_iostat", params), IoStats)


class Histogram(msgspec.Struct, frozen=True):
    """bdev_get_histogram. Ranges `min_range` to `max_range` of 2**granularity buckets each; within a range all buckets
    have the same width, which doubles from range to range (include/spdk/histogram_data.h). `tsc_rate` ticks a second.
    """

    histogram: str
    granularity: int
    tsc_rate: int
    min_range: int = 0
    max_range: int = 0

    @property
    def counts(self) -> tuple[int, ...]:
        """Operations in each bucket, the fastest first."""
        data = base64.b64decode(self.histogram, validate=True)
        return struct.unpack(f"<{len(data) // 8}Q", data)


async def enable_histogram(rpc: Rpc, name: str, enable: bool = True) -> None:
    """Begin or end counting latencies of the bdev (bdev_enable_histogram). -19: no such bdev."""
    await rpc.call("bdev_enable_histogram", {"name": name, "enable": enable})


async def histogram(rpc: Rpc, name: str) -> Histogram:
    """Latencies counted since `enable_histogram` (bdev_get_histogram)."""
    return read("bdev_get_histogram", await rpc.call("bdev_get_histogram", {"name": name}), Histogram)
