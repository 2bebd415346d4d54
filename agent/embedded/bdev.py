"""Block devices of the embedded target: the interface every kind implements, and the registry that names them.

Whoever uses a bdev calls `read`, `write`, `write_zeroes`, `unmap` and `flush`; these throttle (QoS), count (iostat,
histogram) and turn removal into an error. A kind of bdev implements the `do_*` methods, which only move bytes.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, TypeVar

from agent.embedded.traffic import IoKind, Traffic


class BdevEvent(StrEnum):
    RESIZE = "resize"
    REMOVE = "remove"


class RegistryEvent(StrEnum):
    """The notification types of `notify_get_types`."""

    ADDED = "bdev_register"
    REMOVED = "bdev_unregister"
    RESIZED = "bdev_resize"


class ClaimType(StrEnum):
    """`claim_type` of `bdev_get_bdevs`."""

    EXCLUSIVE_WRITE = "exclusive_write"
    READ_MANY_WRITE_ONE = "read_many_write_one"


class IoFailure(Exception):
    """An I/O did not succeed; `errno` says why (EIO, ENOSPC, ENODEV after removal, EROFS)."""

    def __init__(self, errno: int, message: str) -> None:
        self.errno = errno
        super().__init__(message)


class NameTaken(Exception):
    """The registry has a bdev, alias or uuid of that name."""


class Claimed(Exception):
    """The bdev is claimed by another module; the real target answers -1 (EPERM)."""


@dataclass(frozen=True, slots=True)
class IoHints:
    """Alignment advice of `bdev_get_bdevs`, in blocks; 0 means no advice."""

    preferred_write_alignment: int = 0
    preferred_write_granularity: int = 0
    optimal_write_size: int = 0
    preferred_unmap_alignment: int = 0
    preferred_unmap_granularity: int = 0

    def as_dict(self) -> dict[str, int]:
        return {
            "preferred_write_alignment": self.preferred_write_alignment,
            "preferred_write_granularity": self.preferred_write_granularity,
            "optimal_write_size": self.optimal_write_size,
            "preferred_unmap_alignment": self.preferred_unmap_alignment,
            "preferred_unmap_granularity": self.preferred_unmap_granularity,
        }


IO_TYPES = (
    *("read", "write", "unmap", "flush", "reset", "nvme_admin", "nvme_io", "nvme_io_md", "write_zeroes", "zcopy"),
    *("get_zone_info", "zone_management", "zone_append", "compare", "compare_and_write", "abort", "seek_hole"),
    *("seek_data", "copy", "nvme_iov_md", "nvme_nssr", "write_uncorrectable"),
)
"""Names in `supported_io_types`, in the order of the real answer."""

T = TypeVar("T")


class Bdev(ABC):
    """A block device. Offsets and lengths are bytes and multiples of `block_size`; the caller checks bounds."""

    product_name: ClassVar[str] = "bdev"
    module: ClassVar[str] = "bdev"
    """Module that made it ("aio", "lvol", "nvme", ...): `bdev_aio_delete` refuses what is not an AIO bdev."""
    hints: ClassVar[IoHints] = IoHints()
    numa_id: ClassVar[int | None] = None
    memory_domains: ClassVar[tuple[str, ...]] = ()

    def __init__(self, name: str, uuid: str, block_size: int, num_blocks: int) -> None:
        self.name = name
        self.uuid = uuid
        self.aliases: list[str] = [] if uuid == name else [uuid]
        """Other names in the order of `bdev_get_bdevs`. Once registered, change them with `BdevRegistry.realias`."""
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.claimed_by: str | None = None
        """Module that owns the bdev for writing ("lvol", "raid", "NVMe-oF Target"), or None."""
        self.claim_type: ClaimType | None = None
        self.traffic = Traffic()
        self.removed = False
        self._listeners: list[Callable[[Bdev, BdevEvent], None]] = []

    @property
    def size_bytes(self) -> int:
        return self.block_size * self.num_blocks

    @property
    def supported_io(self) -> frozenset[str]:
        """The `supported_io_types` that are true, from IO_TYPES."""
        return frozenset({"read", "write", "unmap", "flush", "reset", "write_zeroes"})

    @property
    def read_only(self) -> bool:
        return "write" not in self.supported_io

    def driver_specific(self) -> dict[str, Any]:
        """`driver_specific` of `bdev_get_bdevs`."""
        return {}

    @property
    def in_use(self) -> bool:
        """Whether somebody has the bdev open."""
        return self.claimed_by is not None or bool(self._listeners)

    # --- I/O: what users of the bdev call -------------------------------------------------------------------------

    async def read(self, offset: int, length: int) -> bytes:
        return await self._serve(IoKind.READ, length, lambda: self.do_read(offset, length))

    async def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        await self._serve(IoKind.WRITE, len(data), lambda: self.do_write(offset, data))

    async def write_zeroes(self, offset: int, length: int) -> None:
        await self._serve(IoKind.ZEROES, length, lambda: self.do_write_zeroes(offset, length))

    async def unmap(self, offset: int, length: int) -> None:
        """Give the space back; the range reads as zeroes afterwards."""
        await self._serve(IoKind.UNMAP, length, lambda: self.do_unmap(offset, length))

    async def flush(self) -> None:
        """Return when everything written before is durable."""
        await self._serve(IoKind.OTHER, 0, self.do_flush)

    async def _serve(self, kind: IoKind, length: int, operation: Callable[[], Awaitable[T]]) -> T:
        if self.traffic.limited:
            await self.traffic.admit(kind, length)
        if self.removed:
            raise IoFailure(errno.ENODEV, f"bdev {self.name} was removed")
        if kind in (IoKind.WRITE, IoKind.ZEROES, IoKind.UNMAP) and self.read_only:
            raise IoFailure(errno.EROFS, f"bdev {self.name} is read-only")
        started = self.traffic.begin()
        try:
            result = await operation()
        except OSError as error:
            self.traffic.fail()
            raise IoFailure(error.errno or errno.EIO, os.strerror(error.errno or errno.EIO)) from error
        except IoFailure:
            self.traffic.fail()
            raise
        self.traffic.end(kind, length, started)
        return result

    # --- I/O: what a kind of bdev implements ----------------------------------------------------------------------

    @abstractmethod
    async def do_read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes. All `do_*` raise IoFailure or OSError."""

    @abstractmethod
    async def do_write(self, offset: int, data: bytes | bytearray | memoryview) -> None: ...

    @abstractmethod
    async def do_write_zeroes(self, offset: int, length: int) -> None: ...

    @abstractmethod
    async def do_unmap(self, offset: int, length: int) -> None: ...

    @abstractmethod
    async def do_flush(self) -> None: ...

    # --- state ----------------------------------------------------------------------------------------------------

    def claim(self, module: str, kind: ClaimType = ClaimType.EXCLUSIVE_WRITE) -> None:
        """Own the bdev for writing. Raises Claimed when somebody does (also the same module)."""
        if self.claimed_by is not None:
            raise Claimed(f"bdev {self.name} is claimed by {self.claimed_by}")
        self.claimed_by, self.claim_type = module, kind

    def release(self) -> None:
        self.claimed_by, self.claim_type = None, None

    def subscribe(self, listener: Callable[[Bdev, BdevEvent], None]) -> Callable[[], None]:
        """Call `listener` on resize and removal; returns the function that ends it. Must not block."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def notify(self, event: BdevEvent) -> None:
        for listener in list(self._listeners):
            listener(self, event)

    def info(self) -> dict[str, Any]:
        """One element of the answer of `bdev_get_bdevs`."""
        supported = self.supported_io
        info: dict[str, Any] = {
            "name": self.name,
            "aliases": list(self.aliases),
            "product_name": self.product_name,
            "block_size": self.block_size,
            "num_blocks": self.num_blocks,
            **self.hints.as_dict(),
            "uuid": self.uuid,
        }
        if self.numa_id is not None:
            info["numa_id"] = self.numa_id
        info["assigned_rate_limits"] = self.traffic.limits.as_dict()
        info["claimed"] = self.claim_type is not None
        if self.claim_type is not None:
            info["claim_type"] = self.claim_type.value
        info["zoned"] = False
        info["supported_io_types"] = {kind: kind in supported for kind in IO_TYPES}
        if self.memory_domains:
            info["memory_domains"] = [{"dma_device_type": kind} for kind in self.memory_domains]
        info["driver_specific"] = self.driver_specific()
        return info


RegistryListener = Callable[[RegistryEvent, Bdev], None]


class BdevRegistry:
    """The bdevs of the target by name, alias and uuid, in the order they were added."""

    def __init__(self) -> None:
        self._bdevs: dict[str, Bdev] = {}
        self._names: dict[str, Bdev] = {}
        self._listeners: list[RegistryListener] = []

    def add(self, bdev: Bdev) -> None:
        """Make `bdev` known. Raises NameTaken when its name, an alias or its uuid is in use."""
        names = {bdev.name, bdev.uuid, *bdev.aliases}
        for name in names:
            if name in self._names:
                raise NameTaken(f"bdev name {name} is taken")
        self._bdevs[bdev.name] = bdev
        self._names.update(dict.fromkeys(names, bdev))
        self._emit(RegistryEvent.ADDED, bdev)

    def remove(self, name: str) -> None:
        """Forget the bdev (no error when absent); its subscribers get REMOVE, its I/O fails with ENODEV from now on."""
        bdev = self._names.get(name)
        if bdev is None:
            return
        bdev.removed = True
        del self._bdevs[bdev.name]
        for known in {bdev.name, bdev.uuid, *bdev.aliases}:
            self._names.pop(known, None)
        bdev.notify(BdevEvent.REMOVE)
        self._emit(RegistryEvent.REMOVED, bdev)

    def realias(self, bdev: Bdev, aliases: Iterable[str]) -> None:
        """Replace the aliases. Raises NameTaken, nothing changed then."""
        wanted = list(aliases)
        for name in wanted:
            if self._names.get(name, bdev) is not bdev:
                raise NameTaken(f"bdev name {name} is taken")
        for name in bdev.aliases:
            self._names.pop(name, None)
        bdev.aliases = wanted
        self._names.update(dict.fromkeys({bdev.name, bdev.uuid, *wanted}, bdev))

    def resize(self, bdev: Bdev, num_blocks: int) -> None:
        """Set the size and tell everybody; nothing happens when it is the same."""
        if bdev.num_blocks == num_blocks:
            return
        bdev.num_blocks = num_blocks
        bdev.notify(BdevEvent.RESIZE)
        if bdev.name in self._bdevs:
            self._emit(RegistryEvent.RESIZED, bdev)

    def get(self, name: str) -> Bdev | None:
        """By name, alias or uuid."""
        return self._names.get(name)

    def all(self) -> list[Bdev]:
        return list(self._bdevs.values())

    def on_change(self, listener: RegistryListener) -> Callable[[], None]:
        """Call `listener` after every add, remove and resize; returns the function that ends it. Must not block."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def _emit(self, event: RegistryEvent, bdev: Bdev) -> None:
        for listener in list(self._listeners):
            listener(event, bdev)
