"""The metadata of a store as it is written to its journal, and how a journal is read back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from agent.embedded.lvs.clusters import ClusterMap
from agent.embedded.lvs.journal import JournalDamaged
from agent.embedded.lvs.layout import Layout


@dataclass(slots=True)
class LvolRecord:
    """One lvol, clone or snapshot."""

    uuid: str
    name: str
    blob_id: int
    """Place in the store: lists are in this order after a restart."""
    clusters: int
    """Size."""
    thin: bool
    parent: str | None = None
    """UUID of the snapshot it is a clone of."""
    read_only: bool = False
    own: ClusterMap = field(default_factory=ClusterMap)
    """Clusters that belong to it and not to the snapshots below it."""

    @property
    def metadata_pages(self) -> int:
        return 1 + self.own.extent_pages

    def to_json(self) -> dict[str, Any]:
        return {
            "uuid": self.uuid,
            "name": self.name,
            "blob_id": self.blob_id,
            "clusters": self.clusters,
            "thin": self.thin,
            "parent": self.parent,
            "read_only": self.read_only,
            "own": self.own.encode(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LvolRecord:
        return cls(**{**data, "own": ClusterMap.decode(data["own"])})


@dataclass(slots=True)
class StoreRecord:
    """The store itself."""

    uuid: str
    name: str
    layout: Layout

    def to_json(self) -> dict[str, Any]:
        shape = self.layout
        return {
            "uuid": self.uuid,
            "name": self.name,
            "cluster_bytes": shape.cluster_bytes,
            "md_pages": shape.md_pages,
            "md_clusters": shape.md_clusters,
            "total_clusters": shape.total_clusters,
            "mask_pages": shape.mask_pages,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> StoreRecord:
        shape = {key: data[key] for key in ("cluster_bytes", "md_pages", "md_clusters", "total_clusters")}
        return cls(data["uuid"], data["name"], Layout(**shape, mask_pages=data.get("mask_pages", 0)))


Freed = dict[str, ClusterMap]
"""Clusters that are nobody's any more and not zeroed yet, by the uuid of the lvol whose data they hold."""


def change(
    lvols: Iterable[LvolRecord] = (),
    dropped: Iterable[str] = (),
    store: StoreRecord | None = None,
    freed: Freed | None = None,
) -> dict[str, Any]:
    """One atomic change: the new state of `lvols` and `store`, the uuids that are gone and what they leave."""
    record: dict[str, Any] = {}
    if store is not None:
        record["store"] = store.to_json()
    if put := [lvol.to_json() for lvol in lvols]:
        record["put"] = put
    if drop := list(dropped):
        record["drop"] = drop
    if freed:
        record["freed"] = {uuid: clusters.encode() for uuid, clusters in freed.items()}
    return record


def zeroed(uuid: str) -> dict[str, Any]:
    """What was freed of this lvol is zeroed."""
    return {"zeroed": uuid}


def allocation(uuid: str, clusters: list[int], *, free: bool = False) -> dict[str, Any]:
    """Clusters that a lvol got, or gave back."""
    return {"free" if free else "own": clusters, "of": uuid}


def replay(records: Iterable[dict[str, Any]]) -> tuple[StoreRecord, dict[str, LvolRecord], Freed]:
    """The state that the records lead to. Raises JournalDamaged."""
    store: StoreRecord | None = None
    lvols: dict[str, LvolRecord] = {}
    freed: Freed = {}
    try:
        for record in records:
            if "store" in record:
                store = StoreRecord.from_json(record["store"])
            for uuid in record.get("drop", ()):
                lvols.pop(uuid, None)
            for data in record.get("put", ()):
                lvols[data["uuid"]] = LvolRecord.from_json(data)
            freed |= {uuid: ClusterMap.decode(data) for uuid, data in record.get("freed", {}).items()}
            freed.pop(record.get("zeroed", ""), None)
            if "of" in record:
                _replay_allocation(lvols, record)
    except (KeyError, TypeError, ValueError) as error:
        raise JournalDamaged(f"record that cannot be understood: {error!r}") from error
    if store is None:
        raise JournalDamaged("no record of the store itself")
    return store, lvols, freed


def _replay_allocation(lvols: dict[str, LvolRecord], record: dict[str, Any]) -> None:
    lvol = lvols.get(record["of"])
    if lvol is None:
        return
    for cluster in record.get("own", ()):
        if cluster < lvol.clusters:
            lvol.own.add(cluster)
    for cluster in record.get("free", ()):
        lvol.own.discard(cluster)


def snapshot_of(store: StoreRecord, lvols: Iterable[LvolRecord], freed: Freed) -> Iterator[dict[str, Any]]:
    """The shortest journal with this state."""
    yield change(store=store, freed=freed)
    for lvol in lvols:
        yield change([lvol])
