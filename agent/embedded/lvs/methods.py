"""RPC methods of SPDK's lvol module: `bdev_lvol_*`."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import Any

from agent.embedded.bdev import BdevRegistry
from agent.embedded.lvs import operations
from agent.embedded.lvs.layout import DEFAULT_CLUSTER_BYTES, DEFAULT_PAGES_RATIO
from agent.embedded.lvs.lvol import LvolBdev
from agent.embedded.lvs.manager import LvstoreManager
from agent.embedded.lvs.past import LoopWrites
from agent.embedded.lvs.store import Lvstore
from agent.embedded.rpc import DECODE_FAULT, U32, U64, Methods, Params, RpcFault

CLEAR_METHODS = frozenset({"none", "unmap", "write_zeroes"})


class CreateStoreParams(Params):
    bdev_name: str
    lvs_name: str
    cluster_sz: U32 = 0
    clear_method: str | None = None
    num_md_pages_per_cluster_ratio: U32 = 0
    md_page_size: U32 = 0


class RenameParams(Params):
    old_name: str
    new_name: str


class StoreParams(Params):
    uuid: str | None = None
    lvs_name: str | None = None


class GetLvolsParams(Params):
    lvs_uuid: str | None = None
    lvs_name: str | None = None


class CreateParams(Params):
    lvol_name: str
    size_in_mib: U64
    thin_provision: bool = False
    uuid: str | None = None
    lvs_name: str | None = None
    clear_method: str | None = None


class SnapshotParams(Params):
    lvol_name: str
    snapshot_name: str


class CloneParams(Params):
    snapshot_name: str
    clone_name: str


class SetParentParams(Params):
    lvol_name: str
    parent_name: str


class NameParams(Params):
    name: str


class ResizeParams(Params):
    name: str
    size_in_mib: U64


def store_info(store: Lvstore) -> dict[str, Any]:
    layout = store.record.layout
    return {
        "uuid": store.uuid,
        "name": store.name,
        "base_bdev": store.base_name,
        "total_data_clusters": layout.data_clusters,
        "free_clusters": store.free_clusters,
        "block_size": store.base.block_size,
        "cluster_size": layout.cluster_bytes,
        "max_growable_size": layout.max_growable_bytes,
    }


def lvol_info(store: Lvstore, bdev: LvolBdev) -> dict[str, Any]:
    record = bdev.record
    return {
        "alias": f"{store.name}/{record.name}",
        "uuid": record.uuid,
        "name": record.name,
        "is_thin_provisioned": record.thin,
        "is_snapshot": bdev.snapshot,
        "is_clone": record.parent is not None,
        "is_esnap_clone": False,
        "is_degraded": False,
        "num_allocated_clusters": record.own.count,
        "lvs": {"name": store.name, "uuid": store.uuid},
    }


class LvolMethods:
    """Handlers of the `bdev_lvol_*` methods."""

    def __init__(self, registry: BdevRegistry, manager: LvstoreManager) -> None:
        self._registry = registry
        self._manager = manager
        self._loop_writes = LoopWrites()

    def register(self, methods: Methods) -> None:
        methods.add("bdev_lvol_create_lvstore", CreateStoreParams, self.create_lvstore)
        methods.add("bdev_lvol_rename_lvstore", RenameParams, self.rename_lvstore)
        methods.add("bdev_lvol_delete_lvstore", StoreParams, self.delete_lvstore)
        methods.add("bdev_lvol_grow_lvstore", StoreParams, self.grow_lvstore)
        methods.add("bdev_lvol_get_lvstores", StoreParams, self.get_lvstores)
        methods.add("bdev_lvol_get_lvols", GetLvolsParams, self.get_lvols)
        methods.add("bdev_lvol_create", CreateParams, self.create)
        methods.add("bdev_lvol_delete", NameParams, self._on_lvol(operations.delete))
        methods.add("bdev_lvol_inflate", NameParams, self._on_lvol(operations.inflate))
        methods.add("bdev_lvol_decouple_parent", NameParams, self._on_lvol(operations.decouple_parent))
        methods.add("bdev_lvol_set_read_only", NameParams, self._on_lvol(operations.set_read_only))
        methods.add("bdev_lvol_resize", ResizeParams, self.resize)
        methods.add("bdev_lvol_rename", RenameParams, self.rename)
        methods.add("bdev_lvol_snapshot", SnapshotParams, self.snapshot)
        methods.add("bdev_lvol_clone", CloneParams, self.clone)
        methods.add("bdev_lvol_set_parent", SetParentParams, self.set_parent)

    def _store(self, uuid: str | None, name: str | None) -> Lvstore:
        """Exactly one of the two names it; RpcFault -22 otherwise, -19 when there is none."""
        if (uuid is None) == (name is None):
            raise RpcFault(-errno.EINVAL)
        store = self._manager.find(uuid=uuid, name=name)
        if store is None:
            raise RpcFault.no_device()
        return store

    async def create_lvstore(self, params: CreateStoreParams) -> str:
        if params.clear_method is not None and params.clear_method not in CLEAR_METHODS:
            raise RpcFault(-errno.EINVAL, "Invalid clear_method parameter")
        bdev = self._registry.get(params.bdev_name)
        if bdev is None:
            raise RpcFault.no_device()
        cluster_bytes = params.cluster_sz or DEFAULT_CLUSTER_BYTES
        ratio = params.num_md_pages_per_cluster_ratio or DEFAULT_PAGES_RATIO
        return self._manager.create(bdev, params.lvs_name, cluster_bytes, ratio).uuid

    async def rename_lvstore(self, params: RenameParams) -> bool:
        store = self._manager.find(name=params.old_name)
        if store is None:
            raise RpcFault(-errno.ENOENT, f"Lvol store {params.old_name} not found")
        self._manager.rename(store, params.new_name)
        await store.commit()
        return True

    async def delete_lvstore(self, params: StoreParams) -> bool:
        await self._manager.destroy(self._named(params))
        return True

    async def grow_lvstore(self, params: StoreParams) -> bool:
        store = self._named(params)
        self._manager.grow(store)
        await store.commit()
        return True

    def _named(self, params: StoreParams) -> Lvstore:
        """For methods that the real target refuses to decode without any parameter."""
        if params.uuid is None and params.lvs_name is None:
            raise RpcFault(DECODE_FAULT.code, DECODE_FAULT.message)
        return self._store(params.uuid, params.lvs_name)

    async def get_lvstores(self, params: StoreParams) -> list[dict[str, Any]]:
        await self._loop_writes.count(self._manager.all())
        if params.uuid is None and params.lvs_name is None:
            return [store_info(store) for store in self._manager.all()]
        return [store_info(self._store(params.uuid, params.lvs_name))]

    async def get_lvols(self, params: GetLvolsParams) -> list[dict[str, Any]]:
        await self._loop_writes.count(self._manager.all())
        if params.lvs_uuid is None and params.lvs_name is None:
            stores = self._manager.all()
        else:
            stores = [self._store(params.lvs_uuid, params.lvs_name)]
        return [lvol_info(store, bdev) for store in stores for bdev in store.lvols.values()]

    async def create(self, params: CreateParams) -> str:
        store = self._store(params.uuid, params.lvs_name)
        if params.clear_method is not None and params.clear_method not in CLEAR_METHODS:
            raise RpcFault(-errno.EINVAL, "Invalid clean_method option")
        return await operations.create(store, params.lvol_name, params.size_in_mib, thin=params.thin_provision)

    def _on_lvol(
        self, operation: Callable[[Lvstore, LvolBdev], Awaitable[None]]
    ) -> Callable[[NameParams], Awaitable[bool]]:
        async def handler(params: NameParams) -> bool:
            await operation(*self._manager.lvol(params.name))
            return True

        return handler

    async def resize(self, params: ResizeParams) -> bool:
        await operations.resize(*self._manager.lvol(params.name), params.size_in_mib)
        return True

    async def rename(self, params: RenameParams) -> bool:
        await operations.rename(*self._manager.lvol(params.old_name), params.new_name)
        return True

    async def snapshot(self, params: SnapshotParams) -> str:
        store, bdev = self._manager.lvol(params.lvol_name)
        return await operations.snapshot(store, bdev, params.snapshot_name, self._loop_writes)

    async def clone(self, params: CloneParams) -> str:
        return await operations.clone(*self._manager.lvol(params.snapshot_name), params.clone_name)

    async def set_parent(self, params: SetParentParams) -> bool:
        store, bdev = self._manager.lvol(params.lvol_name)
        other, parent = self._manager.lvol(params.parent_name)
        if other is not store:
            raise operations.refused(errno.EINVAL)
        await operations.set_parent(store, bdev, parent, self._loop_writes)
        return True
