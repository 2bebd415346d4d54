"""What passes through a bdev: rate limits, I/O counters and the latency histogram."""

from __future__ import annotations

import asyncio
import base64
import struct
import time
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

TICK_RATE = 1_000_000_000
"""Ticks per second of every "ticks" value the target reports: nanoseconds."""

MIB = 1024 * 1024


class IoKind(Enum):
    READ = "read"
    WRITE = "write"
    WRITE_ZEROES = "write_zeroes"
    """Changes the bdev, but is neither limited nor counted as a write."""
    UNMAP = "unmap"
    ZEROES = "write_zeroes"
    """Neither counted nor limited, as in SPDK (bdev_io_update_io_stat, bdev_qos_io_to_limit of lib/bdev/bdev.c)."""

    OTHER = "other"


@dataclass(frozen=True, slots=True)
class RateLimits:
    """QoS of one bdev, 0 is unlimited; names and units of `bdev_set_qos_limit`."""

    rw_ios_per_sec: int = 0
    rw_mbytes_per_sec: int = 0
    r_mbytes_per_sec: int = 0
    w_mbytes_per_sec: int = 0

    def as_dict(self) -> dict[str, int]:
        return {
            "rw_ios_per_sec": self.rw_ios_per_sec,
            "rw_mbytes_per_sec": self.rw_mbytes_per_sec,
            "r_mbytes_per_sec": self.r_mbytes_per_sec,
            "w_mbytes_per_sec": self.w_mbytes_per_sec,
        }

    @property
    def any(self) -> bool:
        return bool(self.rw_ios_per_sec or self.rw_mbytes_per_sec or self.r_mbytes_per_sec or self.w_mbytes_per_sec)


class Bucket:
    """A token bucket that may go into debt: a request waits until the debt of those before it is paid."""

    BURST_S = 0.01

    def __init__(self, rate_per_s: float) -> None:
        self._rate = rate_per_s
        self._paid_until = 0.0

    def delay_s(self, amount: float, now: float) -> float:
        """Take `amount` tokens; returns how long to wait before going on."""
        start = max(self._paid_until, now - self.BURST_S)
        self._paid_until = start + amount / self._rate
        return max(0.0, start - now)


@dataclass(slots=True)
class Counter:
    """Operations of one kind. Latencies are in ticks."""

    bytes: int = 0
    ops: int = 0
    ticks: int = 0
    max_ticks: int = 0
    min_ticks: int = 0

    def count(self, length: int, ticks: int) -> None:
        self.bytes += length
        self.ops += 1
        self.ticks += ticks
        self.max_ticks = max(self.max_ticks, ticks)
        self.min_ticks = min(self.min_ticks, ticks) if self.min_ticks else ticks


class Histogram:
    """SPDK's latency histogram (include/spdk/histogram_data.h): ranges by the leading bit, 2**granularity buckets each.

    Counts latencies from `min_ns` to below `max_ns`; others go to the first and the last bucket.
    """

    GRANULARITY = 7
    MIN_NS = 1_000
    MAX_NS = 5_000_000_000

    def __init__(self, granularity: int = GRANULARITY, min_ns: int = MIN_NS, max_ns: int = MAX_NS) -> None:
        """Raises ValueError for an empty range."""
        if min_ns >= max_ns or granularity >= 64:
            raise ValueError("empty range")
        self.granularity = granularity
        self.min_range = self._range_of(min_ns)
        self.max_range = self._range_of(max_ns - 1)
        self._counts = [0] * ((self.max_range - self.min_range + 1) << granularity)

    def _range_of(self, ticks: int) -> int:
        return max(0, ticks.bit_length() - self.granularity)

    def tally(self, ticks: int) -> None:
        bucket_range = self._range_of(ticks)
        if bucket_range < self.min_range:
            self._counts[0] += 1
        elif bucket_range > self.max_range:
            self._counts[-1] += 1
        else:
            index = (ticks >> max(0, bucket_range - 1)) & ((1 << self.granularity) - 1)
            self._counts[((bucket_range - self.min_range) << self.granularity) + index] += 1

    def clear(self) -> None:
        self._counts = [0] * len(self._counts)

    def as_dict(self) -> dict[str, Any]:
        """The answer of `bdev_get_histogram`: base64 of little-endian 64-bit counts, and how to read them."""
        packed = struct.pack(f"<{len(self._counts)}Q", *self._counts)
        return {
            "histogram": base64.b64encode(packed).decode("ascii"),
            "granularity": self.granularity,
            "min_range": self.min_range,
            "max_range": self.max_range,
            "tsc_rate": TICK_RATE,
        }


@dataclass(slots=True)
class Traffic:
    """Limits and counters of one bdev."""

    limits: RateLimits = field(default_factory=RateLimits)
    limited: bool = False
    read: Counter = field(default_factory=Counter)
    write: Counter = field(default_factory=Counter)
    unmap: Counter = field(default_factory=Counter)
    io_errors: int = 0
    histogram: Histogram | None = None
    """The last one enabled; it counts while `tallying`."""
    tallying: bool = False
    _buckets: tuple[tuple[frozenset[IoKind], Bucket, bool], ...] = ()
    _replaced: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the buckets are not the ones in force any more."""

    def limit(self, limits: RateLimits) -> None:
        """Enforce `limits` from now on, also on operations that wait."""
        both, reads, writes = (
            frozenset({IoKind.READ, IoKind.WRITE}),
            frozenset({IoKind.READ}),
            frozenset({IoKind.WRITE}),
        )
        wanted = (
            (both, limits.rw_ios_per_sec, False),
            (both, limits.rw_mbytes_per_sec * MIB, True),
            (reads, limits.r_mbytes_per_sec * MIB, True),
            (writes, limits.w_mbytes_per_sec * MIB, True),
        )
        self._buckets = tuple((kinds, Bucket(rate), by_bytes) for kinds, rate, by_bytes in wanted if rate)
        self.limits, self.limited = limits, limits.any
        self._replaced.set()
        self._replaced = asyncio.Event()

    async def admit(self, kind: IoKind, length: int) -> None:
        """Wait until an operation of this kind and length may start."""
        while (delay := self._delay_s(kind, length)) > 0:
            try:
                async with asyncio.timeout(delay):
                    await self._replaced.wait()
            except TimeoutError:
                return

    def _delay_s(self, kind: IoKind, length: int) -> float:
        now = time.monotonic()
        delays = [
            bucket.delay_s(length if by_bytes else 1, now) for kinds, bucket, by_bytes in self._buckets if kind in kinds
        ]
        return max(delays, default=0.0)

    def begin(self) -> int:
        return time.monotonic_ns()

    def end(self, kind: IoKind, length: int, started: int) -> None:
        ticks = time.monotonic_ns() - started
        if self.tallying and self.histogram is not None:
            self.histogram.tally(ticks)
        if kind is IoKind.READ:
            self.read.count(length, ticks)
        elif kind is IoKind.WRITE:
            self.write.count(length, ticks)
        elif kind is IoKind.UNMAP:
            self.unmap.count(length, ticks)

    def fail(self) -> None:
        self.io_errors += 1

    def reset(self, *, extremes_only: bool = False) -> None:
        """Start counting again (`bdev_reset_iostat`); `extremes_only` clears only the longest and shortest latency."""
        if extremes_only:
            for counter in (self.read, self.write, self.unmap):
                counter.max_ticks = counter.min_ticks = 0
            return
        self.read, self.write, self.unmap = Counter(), Counter(), Counter()
        self.io_errors = 0

    def iostat(self) -> dict[str, Any]:
        """The counters under the names of `bdev_get_iostat`."""
        result: dict[str, Any] = {}
        counters = {"read": self.read, "write": self.write, "unmap": self.unmap, "copy": Counter()}
        done = {"read": "read", "write": "written", "unmap": "unmapped", "copy": "copied"}
        for name, counter in counters.items():
            result[f"bytes_{done[name]}"] = counter.bytes
            result[f"num_{name}_ops"] = counter.ops
        for name, counter in counters.items():
            result[f"{name}_latency_ticks"] = counter.ticks
            result[f"max_{name}_latency_ticks"] = counter.max_ticks
            result[f"min_{name}_latency_ticks"] = counter.min_ticks
        return result
