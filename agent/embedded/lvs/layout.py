"""How much of a disk a logical volume store can use: the arithmetic of SPDK's blobstore, and the mark on the disk.

The embedded target keeps its metadata elsewhere, but answers with the numbers the real one would: space taken by
metadata, number of metadata pages (which bounds the number of lvols), largest size it can grow to.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, replace
from uuid import UUID

from agent.embedded.filebdev import read_exactly, write_fully

MD_PAGE_BYTES = 4096
DEFAULT_CLUSTER_BYTES = 4 * 1024 * 1024
DEFAULT_PAGES_RATIO = 100
"""Metadata pages per 100 clusters."""

CLUSTERS_PER_EXTENT_PAGE = 512
"""One metadata page lists this many clusters of a lvol (SPDK_EXTENTS_PER_EP)."""

_MASK_HEADER_BYTES = 5
"""Packed size of the header of the blobstore's bit masks."""

_SUPERBLOCK = struct.Struct("<8s8s16sQQ")
_SIGNATURE = b"SPDKBLOB"
_OURS = b"QUARRYLV"


def _div_up(value: int, by: int) -> int:
    return -(-value // by)


def _mask_pages(bits: int) -> int:
    return _div_up(_MASK_HEADER_BYTES + _div_up(bits, 8), MD_PAGE_BYTES)


@dataclass(frozen=True, slots=True)
class Layout:
    """Shape of a store; clusters in units of `cluster_bytes`."""

    cluster_bytes: int
    md_pages: int
    md_clusters: int
    total_clusters: int
    mask_pages: int = 0
    """Pages kept for the mask of used clusters, which bound how far the store can grow. 0: of an older record."""

    @classmethod
    def plan(cls, size_bytes: int, cluster_bytes: int, pages_ratio: int) -> Layout | None:
        """For a new store, None when the disk is too small for it (ENOMEM of the real one)."""
        total = size_bytes // cluster_bytes
        md_pages = total * pages_ratio // 100 or total
        mask_pages = max(_mask_pages(md_pages), _mask_pages(total))
        used = 1 + 2 * _mask_pages(md_pages) + mask_pages + md_pages
        md_clusters = _div_up(used, cluster_bytes // MD_PAGE_BYTES)
        if md_clusters > total:
            return None
        return cls(cluster_bytes, md_pages, md_clusters, total, mask_pages)

    @property
    def data_clusters(self) -> int:
        return self.total_clusters - self.md_clusters

    @property
    def max_growable_bytes(self) -> int:
        """As the real one tells it (spdk_bs_get_max_growable_size): of the metadata pages, whatever its real room."""
        mask_bits = (_mask_pages(self.md_pages) * MD_PAGE_BYTES - _MASK_HEADER_BYTES) * 8
        return mask_bits * self.cluster_bytes

    def grown(self, size_bytes: int) -> Layout | None:
        """The layout on a disk that has `size_bytes` now; None when it shrank or grew too far (spdk_bs_grow_live)."""
        total = size_bytes // self.cluster_bytes
        if total < self.total_clusters or _mask_pages(total) > self._mask_pages_kept:
            return None
        return replace(self, total_clusters=total)

    @property
    def _mask_pages_kept(self) -> int:
        return self.mask_pages or max(_mask_pages(self.md_pages), _mask_pages(self.total_clusters))


def write_superblock(fd: int, store_uuid: UUID, layout: Layout) -> None:
    """Mark the disk as ours, durably. Raises OSError."""
    block = _SUPERBLOCK.pack(_SIGNATURE, _OURS, store_uuid.bytes, layout.cluster_bytes, layout.total_clusters)
    write_fully(fd, 0, block.ljust(MD_PAGE_BYTES, b"\0"))
    os.fdatasync(fd)


def read_superblock(fd: int) -> UUID | None:
    """Which store of ours is on the disk, if any."""
    signature, ours, uuid, _, _ = _SUPERBLOCK.unpack(read_exactly(fd, 0, _SUPERBLOCK.size))
    return UUID(bytes=uuid) if (signature, ours) == (_SIGNATURE, _OURS) else None


def clear_superblock(fd: int) -> None:
    """Take the mark off, durably. Raises OSError."""
    write_fully(fd, 0, bytes(MD_PAGE_BYTES))
    os.fdatasync(fd)
