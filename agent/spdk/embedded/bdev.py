"""Block devices of the embedded target: the interface every kind implements, and the registry that names them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import StrEnum


class BdevEvent(StrEnum):
    RESIZE = "resize"
    REMOVE = "remove"


class IoFailure(Exception):
    """An I/O did not succeed; `errno` says why (EIO, ENOSPC, ENODEV after removal, EROFS)."""

    def __init__(self, errno: int, message: str) -> None:
        self.errno = errno
        super().__init__(message)


class Bdev(ABC):
    """A block device. Offsets and lengths are bytes and multiples of `block_size`; the caller checks bounds."""

    product_name = "bdev"

    def __init__(self, name: str, uuid: str, block_size: int, num_blocks: int) -> None:
        self.name = name
        self.uuid = uuid
        self.aliases: list[str] = []
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.claimed_by: str | None = None
        """Module that owns the bdev exclusively for writing ("lvol", "raid", "NVMe-oF Target"), or None."""
        self._listeners: list[Callable[[Bdev, BdevEvent], None]] = []

    @property
    def size_bytes(self) -> int:
        return self.block_size * self.num_blocks

    @abstractmethod
    async def read(self, offset: int, length: int) -> bytes: ...

    @abstractmethod
    async def write(self, offset: int, data: bytes | memoryview) -> None: ...

    @abstractmethod
    async def write_zeroes(self, offset: int, length: int) -> None: ...

    @abstractmethod
    async def unmap(self, offset: int, length: int) -> None:
        """Give the space back; the range reads as zeroes afterwards."""

    @abstractmethod
    async def flush(self) -> None:
        """Return when everything written before is durable."""

    def subscribe(self, listener: Callable[[Bdev, BdevEvent], None]) -> Callable[[], None]:
        """Call `listener` on resize and removal; returns the function that ends it. Must not block."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def notify(self, event: BdevEvent) -> None:
        for listener in list(self._listeners):
            listener(self, event)
