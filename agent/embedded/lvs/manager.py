"""The stores that are loaded: found again when their disk appears, let go when it is removed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from dataclasses import replace
from pathlib import Path

from agent.embedded.bdev import Bdev, BdevEvent, BdevRegistry
from agent.embedded.filebdev import FdBdev, RegularFileBdev
from agent.embedded.lvs.journal import JournalBusy, JournalDamaged
from agent.embedded.lvs.layout import MD_PAGE_BYTES, Layout, read_superblock
from agent.embedded.lvs.lvol import LvolBdev
from agent.embedded.lvs.operations import MAX_NAME_BYTES, name_fits, refused
from agent.embedded.lvs.store import Lvstore, remove_stores
from agent.embedded.rpc import RpcFault
from agent.tasks.background import noticed

log = logging.getLogger(__name__)

DIRECTORY_SUFFIX = ".lvs"


class LvstoreManager:
    """All stores, in the order they were loaded or made."""

    def __init__(self, registry: BdevRegistry, volatile_dir: Path) -> None:
        """`volatile_dir` takes the data of stores on memory disks; those of an earlier target are removed."""
        self._registry = registry
        self._volatile_dir = volatile_dir
        self._stores: dict[str, Lvstore] = {}
        self._closing: set[asyncio.Task[None]] = set()
        for folder in (*volatile_dir.glob("*/"), volatile_dir):
            remove_stores(folder)
            with contextlib.suppress(OSError):  # it is not there, or something else is in it
                folder.rmdir()

    def all(self) -> list[Lvstore]:
        return list(self._stores.values())

    def find(self, *, uuid: str | None = None, name: str | None = None) -> Lvstore | None:
        if uuid is not None:
            return self._stores.get(uuid)
        return next((store for store in self._stores.values() if store.name == name), None)

    def lvol(self, name: str) -> tuple[Lvstore, LvolBdev]:
        """By name, alias or uuid; RpcFault -19 when there is none or it is something else."""
        bdev = self._registry.get(name)
        if not isinstance(bdev, LvolBdev):
            raise RpcFault.no_device()
        return next(store for store in self._stores.values() if bdev.uuid in store.lvols), bdev

    def create(self, bdev: Bdev, name: str, cluster_bytes: int, pages_ratio: int) -> Lvstore:
        """A new store on `bdev`, which must be over a file or memory. RpcFault with the real target's codes."""
        if not name_fits(name) or cluster_bytes % MD_PAGE_BYTES or cluster_bytes == 0:
            raise RpcFault(-errno.EINVAL)
        if bdev.claimed_by is not None:
            raise RpcFault(-errno.EPERM)
        if self.find(name=name) is not None:
            raise RpcFault(-errno.EEXIST)
        if not isinstance(bdev, FdBdev) or bdev.read_only:
            raise RpcFault(-errno.ENOTSUP, "The embedded target makes lvstores on writable files and memory only")
        if bdev.size_bytes < cluster_bytes:
            raise refused(errno.EINVAL)
        layout = Layout.plan(bdev.size_bytes, cluster_bytes, pages_ratio)
        if layout is None:
            raise refused(errno.ENOMEM)
        try:
            store = Lvstore.create(self._registry, bdev, self._directory(bdev), name, layout)
        except OSError as error:
            raise refused(error.errno or errno.EIO) from error
        self._adopt(store)
        return store

    async def examine(self, bdev: Bdev) -> None:
        """Load the store on a new disk, if one of ours is there."""
        if not isinstance(bdev, RegularFileBdev) or bdev.readonly or bdev.size_bytes < MD_PAGE_BYTES:
            return
        if self._closing:  # perhaps of this very disk, removed a moment ago
            await asyncio.wait(self._closing)
        try:
            uuid = read_superblock(bdev.fd)
            if uuid is None or str(uuid) in self._stores:
                return
            self._adopt(Lvstore.load(self._registry, bdev, self._directory(bdev), uuid))
        except (JournalDamaged, JournalBusy, OSError) as error:
            log.error("the lvstore on %s (%s) cannot be loaded: %s", bdev.name, bdev.path, error)

    def _directory(self, bdev: FdBdev) -> Path:
        if isinstance(bdev, RegularFileBdev):
            path = Path(bdev.path).resolve()
            return path.with_name(path.name + DIRECTORY_SUFFIX)
        return self._volatile_dir / bdev.uuid

    def _adopt(self, store: Lvstore) -> None:
        self._stores[store.uuid] = store
        store.base.subscribe(lambda _, event: self._lose(store) if event is BdevEvent.REMOVE else None)

    def _lose(self, store: Lvstore) -> None:
        """The base bdev is gone: its lvols go at once, what is under way with the journal is waited for."""
        if self._stores.pop(store.uuid, None) is not None:
            store.detach()
            task = asyncio.get_running_loop().create_task(store.close())
            noticed("lvstore-close", task)
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def rename(self, store: Lvstore, name: str) -> None:
        """The real target cuts a name that is too long, and finds an empty one in use."""
        if name == store.name:
            return
        if not name or self.find(name=name) is not None:
            raise refused(errno.EEXIST)
        cut = name.encode("utf-8")[:MAX_NAME_BYTES].decode("utf-8", "ignore")
        try:
            store.apply_store(replace(store.record, name=cut))
        except OSError as error:
            raise refused(error.errno or errno.EIO) from error
        for bdev in store.lvols.values():
            self._registry.realias(bdev, [f"{cut}/{bdev.record.name}"])

    def grow(self, store: Lvstore) -> None:
        """Use the room that the disk has gained."""
        layout = store.record.layout.grown(store.base.size_bytes)
        if layout is None:
            raise refused(errno.ENOSPC)
        if layout != store.record.layout:
            store.apply_store(replace(store.record, layout=layout))

    async def destroy(self, store: Lvstore) -> None:
        """Remove the store with its lvols."""
        self._stores.pop(store.uuid, None)
        await store.destroy()

    async def close(self) -> None:
        """Let go of all disks."""
        stores, self._stores = self.all(), {}
        for store in stores:
            await store.close()
        if self._closing:
            await asyncio.wait(self._closing)
