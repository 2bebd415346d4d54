"""RPC methods about what passes through a bdev: QoS limits, iostat, histograms."""

from __future__ import annotations

import errno
import time
from typing import Any, Literal

from agent.embedded.bdev import Bdev, BdevRegistry
from agent.embedded.bdev_methods import NamedParams, require
from agent.embedded.rpc import INTERNAL_ERROR, INVALID_PARAMS, U8, U64, U64_MAX, Methods, Params, RpcFault
from agent.embedded.traffic import TICK_RATE, Histogram, RateLimits

IOPS_STEP = 1000
"""Limits in operations per second are rounded up to a multiple of this."""

MAX_MBYTES_PER_SEC = U64_MAX // (1024 * 1024)

HISTOGRAM_OPCODES = frozenset(
    {"read", "write", "unmap", "flush", "reset", "nvme_admin", "nvme_io", "nvme_io_md", "write_zeroes", "zcopy", "copy"}
    | {"compare", "compare_and_write", "abort", "get_zone_info", "zone_management", "zone_append", "seek_hole"}
)

ResetMode = Literal["all", "maxmin", "none"]


class QosParams(Params):
    name: str
    rw_ios_per_sec: U64 = U64_MAX
    rw_mbytes_per_sec: U64 = U64_MAX
    r_mbytes_per_sec: U64 = U64_MAX
    w_mbytes_per_sec: U64 = U64_MAX


class IostatParams(Params):
    names: list[str] | None = None
    per_channel: bool = False
    reset_mode: ResetMode = "none"


class ResetIostatParams(Params):
    name: str | None = None
    mode: ResetMode = "all"


class EnableHistogramParams(Params):
    name: str
    enable: bool
    opc: str | None = None
    granularity: U8 = Histogram.GRANULARITY
    min_nsec: U64 = Histogram.MIN_NS
    max_nsec: U64 = Histogram.MAX_NS


class TrafficMethods:
    """Handlers of `bdev_set_qos_limit`, `bdev_get_iostat` and their like."""

    def __init__(self, registry: BdevRegistry) -> None:
        self._registry = registry

    def register(self, methods: Methods) -> None:
        methods.add("bdev_set_qos_limit", QosParams, self.set_qos_limit)
        methods.add("bdev_get_iostat", IostatParams, self.get_iostat)
        methods.add("bdev_reset_iostat", ResetIostatParams, self.reset_iostat)
        methods.add("bdev_enable_histogram", EnableHistogramParams, self.enable_histogram)
        methods.add("bdev_get_histogram", NamedParams, self.get_histogram)

    async def set_qos_limit(self, params: QosParams) -> bool:
        bdev = require(self._registry, params.name)
        current = bdev.traffic.limits
        wanted = {
            "rw_ios_per_sec": params.rw_ios_per_sec,
            "rw_mbytes_per_sec": params.rw_mbytes_per_sec,
            "r_mbytes_per_sec": params.r_mbytes_per_sec,
            "w_mbytes_per_sec": params.w_mbytes_per_sec,
        }
        defined = {key: value for key, value in wanted.items() if value != U64_MAX}
        if not defined:
            raise RpcFault(-errno.EINVAL, "No rate limits specified")
        if current.any and not bdev.in_use:
            # Opening a limited bdev that nobody has open starts its QoS, and while that settles (which it does only
            # after this call) the real target refuses to change it.
            raise RpcFault(INVALID_PARAMS, "Failed to configure rate limit: Resource temporarily unavailable")
        for key, value in defined.items():
            is_iops = key == "rw_ios_per_sec"
            defined[key] = -(-value // IOPS_STEP) * IOPS_STEP if is_iops else min(value, MAX_MBYTES_PER_SEC)
        bdev.traffic.limit(RateLimits(**{**current.as_dict(), **defined}))
        return True

    async def get_iostat(self, params: IostatParams) -> dict[str, Any]:
        if params.names is None:
            if params.per_channel:
                raise RpcFault(-errno.EINVAL)
            bdevs = self._registry.all()
        else:
            bdevs = [require(self._registry, name) for name in params.names]
        answer: dict[str, Any] = {"tick_rate": TICK_RATE, "ticks": time.monotonic_ns()}
        if params.per_channel and len(bdevs) == 1:
            return {**answer, "name": bdevs[0].name, "channels": []}
        answer["bdevs"] = [{"name": bdev.name, **bdev.traffic.iostat(), "io_error": _errors(bdev)} for bdev in bdevs]
        for bdev in bdevs:
            _reset(bdev, params.reset_mode)
        return answer

    async def reset_iostat(self, params: ResetIostatParams) -> bool:
        bdevs = self._registry.all() if params.name is None else [require(self._registry, params.name)]
        for bdev in bdevs:
            _reset(bdev, params.mode)
        return True

    async def enable_histogram(self, params: EnableHistogramParams) -> bool:
        traffic = require(self._registry, params.name).traffic
        if params.opc is not None and params.opc not in HISTOGRAM_OPCODES:
            raise RpcFault(INTERNAL_ERROR, "Invalid Io type")
        if not params.enable:
            traffic.tallying = False
            if traffic.histogram is not None:
                traffic.histogram.clear()
            return True
        try:
            traffic.histogram = Histogram(params.granularity, params.min_nsec, params.max_nsec)
        except ValueError as error:
            raise RpcFault(-errno.EINVAL) from error
        traffic.tallying = True
        return True

    async def get_histogram(self, params: NamedParams) -> dict[str, Any]:
        histogram = require(self._registry, params.name).traffic.histogram
        if histogram is None:
            raise RpcFault(-errno.ENOMEM)
        return histogram.as_dict()


def _errors(bdev: Bdev) -> dict[str, int]:
    return {"failed": bdev.traffic.io_errors} if bdev.traffic.io_errors else {}


def _reset(bdev: Bdev, mode: ResetMode) -> None:
    if mode != "none":
        bdev.traffic.reset(extremes_only=mode == "maxmin")
