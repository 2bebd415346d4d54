"""Calls about lvstores (pools) and logical volumes. Sizes are bytes; the target rounds them up to whole clusters.

A logical volume is named by its UUID or by its alias `lvstore/lvol`.
"""

from __future__ import annotations

import errno
from typing import Literal

import msgspec

from agent.errors import RpcError
from agent.spdk.answers import given, mebibytes, read
from agent.spdk.client import Rpc

ClearMethod = Literal["none", "unmap", "write_zeroes"]

_MD_PAGE_BYTES = 4096
_MASK_HEADER_BYTES = 5
"""Packed size of struct spdk_bs_md_mask (lib/blob/blobstore.h)."""


class LvstoreInfo(msgspec.Struct, frozen=True):
    """bdev_lvol_get_lvstores."""

    uuid: str
    name: str
    base_bdev: str
    total_data_clusters: int
    free_clusters: int
    block_size: int
    cluster_size: int
    max_growable_size: int = 0
    """What the number of metadata pages allows alone; see `growth_limit_bytes`."""

    @property
    def growth_limit_bytes(self) -> int:
        """Size of the largest disk that it can follow when its disk grows (spdk_bs_grow_live).

        The mask of used clusters was laid out in whole pages when the pool was made: for its metadata pages or its
        clusters, whichever are more.
        """
        pages = -(-(_MASK_HEADER_BYTES + -(-self.total_data_clusters // 8)) // _MD_PAGE_BYTES)
        clusters = (pages * _MD_PAGE_BYTES - _MASK_HEADER_BYTES) * 8
        return max(self.max_growable_size, clusters * self.cluster_size)

    @property
    def size_bytes(self) -> int:
        return self.total_data_clusters * self.cluster_size

    @property
    def free_bytes(self) -> int:
        return self.free_clusters * self.cluster_size


class _Pool(msgspec.Struct, frozen=True):
    name: str
    uuid: str


class LvolInfo(msgspec.Struct, frozen=True):
    """bdev_lvol_get_lvols. The size is not among what it tells: `agent.spdk.bdev.get` has it."""

    uuid: str
    name: str
    alias: str
    lvs: _Pool
    is_thin_provisioned: bool
    is_snapshot: bool
    is_clone: bool
    num_allocated_clusters: int
    is_degraded: bool = False


# --- lvstores ---


async def create_lvstore(
    rpc: Rpc,
    bdev_name: str,
    lvs_name: str,
    *,
    cluster_bytes: int,
    md_ratio: int = 100,
    clear_method: ClearMethod = "none",
    timeout_s: float | None = None,
) -> str:
    """Make an lvstore on the bdev, destroying what is on it; returns its UUID.

    `md_ratio`: metadata pages per hundred clusters; each lvol takes at least one. -19 no such bdev, -1 the bdev has an
    lvstore or the name is taken.
    """
    params = {
        "bdev_name": bdev_name,
        "lvs_name": lvs_name,
        "cluster_sz": cluster_bytes,
        "clear_method": clear_method,
        "num_md_pages_per_cluster_ratio": md_ratio,
    }
    result = await rpc.call("bdev_lvol_create_lvstore", params, timeout_s=timeout_s)
    return read("bdev_lvol_create_lvstore", result, str)


async def get_lvstore(rpc: Rpc, lvs_name: str) -> LvstoreInfo | None:
    """The lvstore, None when there is none of that name (-19)."""
    try:
        result = await rpc.call("bdev_lvol_get_lvstores", {"lvs_name": lvs_name})
    except RpcError as error:
        if error.code == -errno.ENODEV:
            return None
        raise
    found = read("bdev_lvol_get_lvstores", result, list[LvstoreInfo])
    return found[0] if found else None


async def list_lvstores(rpc: Rpc) -> list[LvstoreInfo]:
    """All lvstores that are loaded."""
    return read("bdev_lvol_get_lvstores", await rpc.call("bdev_lvol_get_lvstores"), list[LvstoreInfo])


async def grow_lvstore(rpc: Rpc, lvs_name: str) -> None:
    """Use the whole of a base bdev that has grown (bdev_lvol_grow_lvstore)."""
    await rpc.call("bdev_lvol_grow_lvstore", {"lvs_name": lvs_name})


async def rename_lvstore(rpc: Rpc, old_name: str, new_name: str) -> None:
    """Rename the lvstore; the aliases of its lvols follow (bdev_lvol_rename_lvstore)."""
    await rpc.call("bdev_lvol_rename_lvstore", {"old_name": old_name, "new_name": new_name})


async def delete_lvstore(rpc: Rpc, lvs_name: str, *, timeout_s: float | None = None) -> None:
    """Destroy the lvstore with all its lvols (bdev_lvol_delete_lvstore). -19 absent."""
    await rpc.call("bdev_lvol_delete_lvstore", {"lvs_name": lvs_name}, timeout_s=timeout_s)


async def list_lvols(rpc: Rpc, lvs_name: str | None = None) -> list[LvolInfo]:
    """The lvols of one lvstore (-19: no such lvstore), or of all. One that is being deleted is not among them."""
    result = await rpc.call("bdev_lvol_get_lvols", given(lvs_name=lvs_name) or None)
    return read("bdev_lvol_get_lvols", result, list[LvolInfo])


# --- logical volumes ---


async def create(
    rpc: Rpc,
    lvs_name: str,
    lvol_name: str,
    size_bytes: int,
    *,
    thin: bool = True,
    clear_method: ClearMethod | None = None,
) -> str:
    """Make an lvol; returns its UUID, which is also its bdev's name.

    `clear_method` is how freed clusters are erased (target's default: unmap); a thin lvol is given in clusters as it is
    written. -17 name taken, -19 no such lvstore, -22 name empty or longer than 63 bytes, -32602 no space for a thick
    lvol or no metadata page left.
    """
    params = given(
        lvs_name=lvs_name,
        lvol_name=lvol_name,
        size_in_mib=mebibytes("size_bytes", size_bytes),
        thin_provision=thin,
        clear_method=clear_method,
    )
    return read("bdev_lvol_create", await rpc.call("bdev_lvol_create", params), str)


async def delete(rpc: Rpc, name: str, *, timeout_s: float | None = None) -> None:
    """Destroy the lvol. -19 absent, -32603 a snapshot with clones.

    An lvol in use is destroyed too and its namespace disappears (measured): the caller has to know that it is not.
    """
    await rpc.call("bdev_lvol_delete", {"name": name}, timeout_s=timeout_s)


async def resize(rpc: Rpc, name: str, size_bytes: int) -> None:
    """Set the size; connected hosts see it at once. -19 absent, -32602 read-only."""
    await rpc.call("bdev_lvol_resize", {"name": name, "size_in_mib": mebibytes("size_bytes", size_bytes)})


async def snapshot(rpc: Rpc, name: str, snapshot_name: str) -> str:
    """Freeze the lvol's contents as `snapshot_name` in the same lvstore; returns its UUID. -32602 name taken."""
    params = {"lvol_name": name, "snapshot_name": snapshot_name}
    return read("bdev_lvol_snapshot", await rpc.call("bdev_lvol_snapshot", params), str)


async def clone(rpc: Rpc, snapshot_name: str, clone_name: str) -> str:
    """A writable lvol over a snapshot or read-only lvol; returns its UUID. -32602 not read-only, or name taken.

    Its clear method is the target's default, unmap, whatever the snapshot's is: see decision 0005 before using it.
    """
    params = {"snapshot_name": snapshot_name, "clone_name": clone_name}
    return read("bdev_lvol_clone", await rpc.call("bdev_lvol_clone", params), str)


async def set_parent(rpc: Rpc, name: str, parent: str) -> None:
    """Put a thin lvol on top of a snapshot of the same size: what it has not written itself, the snapshot shows.

    -19 one is absent; -32602 already its parent, not a thin lvol, another size, or no snapshot in the target's eyes:
    one without clones is not called a snapshot any more once the pool was loaded anew (measured, v26.05).
    """
    await rpc.call("bdev_lvol_set_parent", {"lvol_name": name, "parent_name": parent})


async def decouple_parent(rpc: Rpc, name: str, *, timeout_s: float | None = None) -> None:
    """Copy what the lvol shares with its parent snapshot, which then has one clone fewer; stays thin."""
    await rpc.call("bdev_lvol_decouple_parent", {"name": name}, timeout_s=timeout_s)


async def inflate(rpc: Rpc, name: str, *, timeout_s: float | None = None) -> None:
    """Allocate all clusters, copying from the parent: the lvol becomes thick and independent."""
    await rpc.call("bdev_lvol_inflate", {"name": name}, timeout_s=timeout_s)


async def rename(rpc: Rpc, old_name: str, new_name: str) -> None:
    """`old_name` is an alias or UUID, `new_name` the bare new name in the same lvstore."""
    await rpc.call("bdev_lvol_rename", {"old_name": old_name, "new_name": new_name})


async def set_read_only(rpc: Rpc, name: str) -> None:
    """Refuse writes from now on; there is no way back."""
    await rpc.call("bdev_lvol_set_read_only", {"name": name})
