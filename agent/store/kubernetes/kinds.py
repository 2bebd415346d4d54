"""The custom resources by name: group, version, plurals, and which of them are deleted only by us (finalizer)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.model import Disk, Resource, Snapshot, SnapshotGroup, StorageNode, Volume

GROUP = "quarry.storage"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

MANAGER = "quarry"
"""What the API calls us as the writer of a field: the start of our User-Agent."""

FINALIZER = f"{GROUP}/data"
"""On what has data behind it. The API only marks such an object as deleting; it goes when its data are gone."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One custom resource. `has_data`: objects carry FINALIZER from the start."""

    type: type[Resource]
    plural: str
    short_names: tuple[str, ...]
    has_data: bool = False

    @property
    def name(self) -> str:
        return self.type.__name__

    @property
    def path(self) -> str:
        """Where the API serves it: cluster-scoped."""
        return f"/apis/{API_VERSION}/{self.plural}"


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(StorageNode, "storagenodes", ("qnode",)),
        Kind(Disk, "disks", ("qdisk",)),
        Kind(Volume, "volumes", ("qvol",), has_data=True),
        Kind(Snapshot, "snapshots", ("qsnap",), has_data=True),
        Kind(SnapshotGroup, "snapshotgroups", ("qsnapgroup",), has_data=True),
    )
}
