"""Resources as the documents of `/v1`: what is stored, and beside it what only the running agent knows.

Every document has `meta`, `spec` and `status` as stored (sizes in bytes, times in seconds since the epoch). No resource
holds a secret: CSI secrets are never stored.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agent.diag.parts import Parts
from agent.errors import NotFound, QuarryError
from agent.model import Disk, DiskPhase, Resource, Snapshot, StorageNode, TargetState, Volume, VolumePhase

if TYPE_CHECKING:
    from agent.volumes.target.bringup import TargetKeeper


Document = dict[str, Any]
"""May hold dataclasses of agent.model: msgspec writes them as JSON."""


class Resources:
    """Documents by kind: `nodes`, `disks`, `volumes`, `snapshots`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._lists: Mapping[str, Callable[[], Awaitable[list[Document]]]] = {
            "nodes": self._nodes,
            "disks": self._disks,
            "volumes": self._volumes,
            "snapshots": self._snapshots,
        }

    @property
    def kinds(self) -> Sequence[str]:
        return tuple(self._lists)

    async def all(self, kind: str) -> list[Document]:
        """All of a kind, by name. Raises NotFound for another word, Unavailable when the store does not answer."""
        if kind not in self._lists:
            raise NotFound("kind of resource", kind)
        found = await self._lists[kind]()
        return sorted(found, key=lambda document: str(document["meta"].name))

    async def show(self, kind: str, name: str) -> Document:
        """One resource by its name or its CSI name, a disk also by path, link or serial number; with what is related.

        Raises NotFound.
        """
        found = [each for each in await self.all(kind) if name in _names(each)]
        exact = [each for each in found if each["meta"].name == name]
        if not found:
            raise NotFound(kind.removesuffix("s"), name)
        document = (exact or found)[0]
        if "now" in document:
            document["now"] |= await self._watched()
        return document | await self._related(kind, document["meta"].name)

    async def _nodes(self) -> list[Document]:
        nodes = [_document(each) for each in await self._parts.store.list(StorageNode)]
        keeper = self._parts.keeper
        for node in nodes:
            if keeper is not None and node["meta"].name == self._parts.node:
                node["now"] = _now(keeper)
        return nodes

    async def _watched(self) -> Document:
        """How busy this node's target is; takes a second, during which it is not disturbed."""
        keeper, activity = self._parts.keeper, self._parts.activity
        if activity is None or keeper is None or keeper.nature is None or keeper.state is not TargetState.READY:
            return {}
        try:
            return {"activity": dict(await activity())}
        except QuarryError as error:
            return {"activity_trouble": str(error)}

    async def _disks(self) -> list[Document]:
        ledger = self._parts.ledger
        documents = []
        for disk in await self._parts.store.list(Disk):
            pool = ledger.pool(disk.meta.name) if ledger is not None else None
            space = None
            if pool is not None:
                space = {
                    "size_bytes": pool.size_bytes,
                    "free_bytes": pool.free_bytes,
                    "allocated_bytes": pool.size_bytes - pool.free_bytes,
                    "reserved_bytes": int(pool.promised_bytes),
                    "accepting": pool.accepting,
                }
            documents.append(_document(disk) | {"tier": disk.tier, "space": space})
        return documents

    async def _volumes(self) -> list[Document]:
        disks = {each.meta.name: each.status.phase for each in await self._parts.store.list(Disk)}
        volumes = [_as_served(each, disks) for each in await self._parts.store.list(Volume)]
        if self._parts.conditions is None:
            return [_document(each) | {"condition": None} for each in volumes]
        conditions = await self._parts.conditions(volumes)
        return [_document(each) | {"condition": condition} for each, condition in zip(volumes, conditions, strict=True)]

    async def _snapshots(self) -> list[Document]:
        return [_document(each) for each in await self._parts.store.list(Snapshot)]

    async def _related(self, kind: str, name: str) -> Document:
        store, lineage = self._parts.store, self._parts.lineage
        if kind == "nodes":
            disks = [each.meta.name for each in await store.list(Disk) if each.status.node == name]
            published = [
                each.meta.name
                for each in await store.list(Volume)
                if any(attachment.node == name for attachment in each.spec.attachments)
            ]
            return {"disks": sorted(disks), "published": sorted(published)}
        if kind == "disks":
            volumes = [each.meta.name for each in await store.list(Volume) if _lies_on(each, name)]
            snapshots = [each.meta.name for each in await store.list(Snapshot) if each.spec.disk == name]
            return {"volumes": sorted(volumes), "snapshots": sorted(snapshots)}
        related: Document = {}
        if kind == "volumes":
            taken = [each.meta.name for each in await store.list(Snapshot) if each.spec.volume == name]
            related["snapshots"] = sorted(taken)
        if lineage is not None:
            # One lvol stands on another, which stands on a third: from the nearest to the oldest.
            chain, below = list[str](), lineage.parent_of(name)
            while below and below not in chain:
                chain.append(below)
                below = lineage.parent_of(below)
            related["stands_on"] = chain
            if kind == "snapshots":
                related["carries"] = lineage.children_of(name)
        return related


def _document(resource: Resource) -> Document:
    return {"meta": resource.meta, "spec": resource.spec, "status": resource.status}


def _names(document: Document) -> set[str]:
    spec, status = document["spec"], document["status"]
    names = {document["meta"].name, getattr(spec, "csi_name", "")}
    if hasattr(status, "serial"):
        path = status.path
        names |= {path, path.removeprefix("/dev/"), status.serial, status.wwid, *status.links}
    return names - {""}


def _as_served(volume: Volume, disks: Mapping[str, DiskPhase]) -> Volume:
    """The volume with replicas not ready whose disk is not: that is told of the disk, once, not of all that lies on it.

    Also while its record says otherwise: what was recorded is how it was when it was settled last.
    """
    unserved = {each.name for each in volume.spec.placement if disks.get(each.disk) is not DiskPhase.READY}
    if volume.status.phase is VolumePhase.FAILED:
        unserved = {each.name for each in volume.status.replicas}
    if not unserved:
        return volume
    replicas = tuple(replace(each, ready=each.ready and each.name not in unserved) for each in volume.status.replicas)
    return replace(volume, status=replace(volume.status, replicas=replicas))


def _lies_on(volume: Volume, disk: str) -> bool:
    return any(replica.disk == disk for replica in volume.spec.placement)


def _now(keeper: TargetKeeper) -> Document:
    """What the store is not told all the time: how the target is."""
    last = keeper.last_recovery
    return {
        "target_state": keeper.state,
        "target_version": keeper.nature.version if keeper.nature else "",
        "target_program": keeper.nature.program if keeper.nature else "",
        "target_mode": keeper.nature.mode if keeper.nature else "",
        "trouble": keeper.trouble,
        "target_rebuilds": keeper.recoveries,
        "last_rebuild_seconds": last.seconds if last else None,
    }
