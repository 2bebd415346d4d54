"""What can be done to the lvols of a store, with the rules and error codes of the real target's lvol module.

Each operation prepares data files first, then makes its change in one journal record, then tidies up: whatever the
moment of death, the journal describes a state that existed, and files it does not know are collected at the next load.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from agent.embedded.bdev import NameTaken
from agent.embedded.lvs import datafile
from agent.embedded.lvs.clusters import ClusterMap
from agent.embedded.lvs.lvol import LvolBdev
from agent.embedded.lvs.past import LoopWrites
from agent.embedded.lvs.records import LvolRecord
from agent.embedded.lvs.store import Lvstore
from agent.embedded.rpc import INTERNAL_ERROR, INVALID_PARAMS, RpcFault

MAX_NAME_BYTES = 63
MIB = 1024 * 1024
MAX_CLUSTERS = 2**32
"""Beyond, the real target runs out of memory for the list of clusters."""

_STRERROR = {
    errno.EPERM: "Operation not permitted",
    errno.EEXIST: "File exists",
    errno.EINVAL: "Invalid argument",
    errno.ENOMEM: "Cannot allocate memory",
    errno.ENOSPC: "No space left on device",
    errno.EIO: "Input/output error",
}


def refused(number: int) -> RpcFault:
    """-32602 with the text of an errno: how most of the module's failures are answered."""
    return RpcFault(INVALID_PARAMS, _STRERROR.get(number, "Input/output error"))


def name_fits(name: str) -> bool:
    return 0 < len(name.encode("utf-8")) <= MAX_NAME_BYTES


def clusters_for(store: Lvstore, size_in_mib: int) -> int:
    """Clusters that hold the size. The real one computes bytes in 64 bits, which wrap. RpcFault when far too large."""
    size_bytes = size_in_mib * MIB % 2**64
    clusters = -(-size_bytes // store.cluster_bytes)
    if clusters >= MAX_CLUSTERS:
        raise refused(errno.ENOMEM)
    return clusters


@contextlib.contextmanager
def _reserved(store: Lvstore, name: str) -> Iterator[None]:
    """Keep `name` free for the operation under way. Raises RpcFault when it is taken."""
    if name in store.names:
        raise refused(errno.EEXIST)
    store.names[name] = None
    try:
        yield
    finally:
        if store.names.get(name, ...) is None:
            del store.names[name]


@contextlib.asynccontextmanager
async def _exclusive(bdev: LvolBdev) -> AsyncIterator[None]:
    """Be the only operation on the lvol. RpcFault -19 when it went away meanwhile."""
    async with bdev.operation:
        if bdev.removed:
            raise RpcFault.no_device()
        yield


@contextlib.contextmanager
def _journalled() -> Iterator[None]:
    """The host's filesystem being full or failing is answered like the pool's."""
    try:
        yield
    except OSError as error:
        raise refused(error.errno or errno.EIO) from error


def _publish(store: Lvstore, record: LvolRecord, others: list[LvolRecord]) -> LvolBdev:
    """Journal a new lvol together with changed ones and make its bdev; its file goes when that fails."""
    record.blob_id = store.take_id()
    try:
        if store.registry.get(f"{store.name}/{record.name}") is not None:
            raise refused(errno.EEXIST)
        with _journalled():
            store.apply([record, *others])
    except RpcFault:
        store.give_back_id(record.blob_id)
        store.path_of(record.uuid).unlink(missing_ok=True)
        raise
    return store.publish(record)


def _need(store: Lvstore, *, clusters: int = 0, pages: int = 0) -> None:
    if clusters > store.free_clusters:
        raise refused(errno.ENOSPC)
    if pages > store.free_pages:
        raise refused(errno.ENOMEM)


async def create(store: Lvstore, name: str, size_in_mib: int, *, thin: bool) -> str:
    """Returns the uuid."""
    if not name_fits(name):
        raise RpcFault(-errno.EINVAL)
    if name in store.names:
        raise RpcFault(-errno.EEXIST)
    clusters = clusters_for(store, size_in_mib)
    if not thin:
        _need(store, clusters=clusters)
    own = ClusterMap() if thin else ClusterMap.first(clusters)
    record = LvolRecord(str(uuid4()), name, 0, clusters, thin, own=own)
    _need(store, pages=record.metadata_pages)
    try:
        datafile.create(store.path_of(record.uuid), clusters * store.cluster_bytes)
    except OSError as error:
        raise refused(errno.ENOSPC if error.errno == errno.ENOSPC else errno.ENOMEM) from error
    _publish(store, record, [])
    store.leftovers.hand_out(store.path_of(record.uuid), own)
    await store.commit()
    return record.uuid


async def delete(store: Lvstore, bdev: LvolBdev) -> None:
    """A snapshot with one clone gives what it owns to the clone; with more it is refused."""
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(_exclusive(bdev))
        clones = store.children(bdev.record.uuid)
        if len(clones) > 1:
            raise RpcFault(INTERNAL_ERROR, "Operation not permitted")
        if clones:
            await stack.enter_async_context(_exclusive(clones[0]))
            if bdev.removed or store.children(bdev.record.uuid) != clones:
                raise RpcFault(INTERNAL_ERROR, "Operation not permitted")
        heirs = [_without_parent(clone.record, bdev.record) for clone in clones]
        uuid, name, freed = bdev.record.uuid, bdev.record.name, bdev.record.own
        for clone in clones:  # what it has not written itself it takes over
            freed = freed.minus(freed.minus(clone.record.own).below(clone.record.clusters))
        with _journalled():
            store.apply(heirs, [uuid], {uuid: freed})
        store.registry.remove(bdev.name)
        store.files.forget(bdev.path)
        store.names[name] = None  # taken until the end, as in the real one
        try:
            await store.commit()
            await store.zero(uuid)
        finally:
            store.names.pop(name, None)


def _without_parent(clone: LvolRecord, parent: LvolRecord) -> LvolRecord:
    """The clone once it owns what its parent owns and stands on its parent's parent."""
    own = clone.own.union(parent.own, clone.clusters)
    return replace(clone, own=own, parent=parent.parent)


async def resize(store: Lvstore, bdev: LvolBdev, size_in_mib: int) -> None:
    async with _exclusive(bdev):
        if bdev.record.read_only:
            raise refused(errno.EPERM)
        clusters = clusters_for(store, size_in_mib)
        growth = clusters - bdev.record.clusters
        if growth == 0:
            return
        if growth > 0 and not bdev.record.thin:
            _need(store, clusters=growth)
        async with bdev.gate.closed():
            _resize(store, bdev, clusters)
        blocks = clusters * store.cluster_bytes // bdev.block_size
        store.registry.resize(bdev, blocks)
        await store.commit()


def _resize(store: Lvstore, bdev: LvolBdev, clusters: int) -> None:
    old, size_bytes = bdev.record, clusters * store.cluster_bytes
    own = old.own.below(clusters)
    if clusters > old.clusters and not old.thin:
        for cluster in range(old.clusters, clusters):
            own.add(cluster)
    try:
        if clusters > old.clusters:
            datafile.resize(bdev.path, size_bytes)
        with _journalled():
            store.apply([replace(old, clusters=clusters, own=own)])
        store.leftovers.hand_out(bdev.path, own.minus(old.own))
        if clusters < old.clusters:
            datafile.resize(bdev.path, size_bytes)
    except OSError as error:
        raise refused(errno.ENOMEM) from error


async def snapshot(store: Lvstore, bdev: LvolBdev, name: str, loop_writes: LoopWrites) -> str:
    """A read-only copy as of now; the lvol becomes a thin clone of it. Returns the snapshot's uuid."""
    async with _exclusive(bdev):
        _check_copy(store, name, can=not bdev.record.read_only)
        with _reserved(store, name):
            uuid = str(uuid4())
            async with bdev.gate.closed():
                await loop_writes.settle(store, bdev)  # what was written so far is the snapshot's
                await _copy(bdev.path, store.path_of(uuid), bdev.size_bytes)
                _still_there(store, bdev, store.path_of(uuid))
                old = bdev.record
                record = replace(old, uuid=uuid, name=name, read_only=True)
                clone = replace(old, parent=uuid, thin=True, own=ClusterMap())
                _publish(store, record, [clone]).snapshot = True
            await store.commit()
            return uuid


async def clone(store: Lvstore, bdev: LvolBdev, name: str) -> str:
    """A thin, writable lvol with the content of a read-only one. Returns its uuid."""
    async with _exclusive(bdev):
        _check_copy(store, name, can=bdev.record.read_only)
        with _reserved(store, name):
            uuid = str(uuid4())
            await _copy(bdev.path, store.path_of(uuid), bdev.size_bytes)
            _still_there(store, bdev, store.path_of(uuid))
            record = LvolRecord(uuid, name, 0, bdev.record.clusters, True, parent=bdev.record.uuid)
            _publish(store, record, [])
            bdev.snapshot = True
            await store.commit()
            return uuid


async def set_parent(store: Lvstore, bdev: LvolBdev, parent: LvolBdev, loop_writes: LoopWrites) -> None:
    """What the lvol has not written itself becomes the snapshot's."""
    if bdev is parent:
        raise refused(errno.EINVAL)
    if bdev.record.parent == parent.record.uuid:
        raise refused(errno.EEXIST)
    async with _exclusive(parent), _exclusive(bdev):
        if not bdev.record.thin or not parent.snapshot or bdev.record.clusters != parent.record.clusters:
            raise refused(errno.EINVAL)
        async with bdev.gate.closed():
            await loop_writes.settle(store, bdev)  # what the lvol does not own is overwritten
            await _overlay(parent.path, bdev)
            _still_there(store, bdev, bdev.path)
            with _journalled():
                store.apply([replace(bdev.record, parent=parent.record.uuid)])
        await store.commit()


async def _overlay(below: Path, bdev: LvolBdev) -> None:
    """Fill the clusters that the lvol does not own. Until the journal says so they are nobody's: a crash is no harm."""
    size = bdev.size_bytes // bdev.record.clusters if bdev.record.clusters else 0
    absent = bdev.record.own.missing(0, bdev.record.clusters - 1)
    try:
        await asyncio.to_thread(datafile.fill, below, bdev.path, ((each * size, size) for each in absent))
    except OSError as error:
        raise refused(error.errno or errno.EIO) from error


def _check_copy(store: Lvstore, name: str, *, can: bool) -> None:
    if not name_fits(name) or not can:
        raise refused(errno.EINVAL)
    _need(store, pages=1)


async def _copy(source: Path, target: Path, size_bytes: int) -> None:
    try:
        await asyncio.to_thread(datafile.copy, source, target, size_bytes)
    except OSError as error:
        raise refused(error.errno or errno.EIO) from error


def _still_there(store: Lvstore, bdev: LvolBdev, copied: Path) -> None:
    """The disk may have been removed while the copy was made."""
    if store.closed or bdev.removed:
        copied.unlink(missing_ok=True)
        raise RpcFault.no_device()


async def decouple_parent(store: Lvstore, bdev: LvolBdev) -> None:
    """The clone gets its own copy of what the snapshot right below it owns."""

    def next_state(old: LvolRecord) -> LvolRecord:
        if old.parent is None:
            raise refused(errno.EINVAL)
        return _without_parent(old, store.lvols[old.parent].record)

    await _take_over(store, bdev, next_state)


async def inflate(store: Lvstore, bdev: LvolBdev) -> None:
    """The lvol owns every cluster, depends on nothing and is thick."""
    await _take_over(store, bdev, lambda old: replace(old, own=ClusterMap.first(old.clusters), parent=None, thin=False))


async def _take_over(store: Lvstore, bdev: LvolBdev, next_state: Callable[[LvolRecord], LvolRecord]) -> None:
    async with _exclusive(bdev):
        old = bdev.record
        new = next_state(old)
        _need(store, clusters=new.own.count - old.own.count, pages=new.metadata_pages - old.metadata_pages)
        with _journalled():
            store.apply([new])
        await store.commit()


async def rename(store: Lvstore, bdev: LvolBdev, name: str) -> None:
    async with _exclusive(bdev):
        if name in store.names:
            raise refused(errno.EEXIST)
        if bdev.record.read_only:
            raise refused(errno.EPERM)
        if len(name.encode("utf-8")) > MAX_NAME_BYTES:
            raise refused(errno.EINVAL)
        old = bdev.record
        try:
            store.registry.realias(bdev, [f"{store.name}/{name}"])
        except NameTaken as error:
            raise refused(errno.EEXIST) from error
        try:
            with _journalled():
                store.apply([replace(old, name=name)])
        except RpcFault:
            store.registry.realias(bdev, [f"{store.name}/{old.name}"])
            raise
        del store.names[old.name]
        store.names[name] = bdev
        await store.commit()


async def set_read_only(store: Lvstore, bdev: LvolBdev) -> None:
    async with _exclusive(bdev):
        if bdev.record.read_only:
            return
        async with bdev.gate.closed():
            with _journalled():
                store.apply([replace(bdev.record, read_only=True)])
        await store.commit()
