"""Snapshot and SnapshotGroup: volumes at a point in time."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from agent.model.common import Failure, Meta, Provisioning


class SnapshotPhase(StrEnum):
    PENDING = "Pending"
    READY = "Ready"
    DELETING = "Deleting"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True)
class SnapshotSpec:
    """`meta.name` is the snapshot id and the name of its lvol, which lies where the volume lies."""

    csi_name: str
    """The name CreateSnapshot was called with; empty: not known, of one that came with a disk."""
    volume: str
    """Id of the volume it is of."""
    node: str = ""
    """The node that has it; empty: nowhere, it was given up."""
    disk: str = ""
    """The Disk that it lies on."""
    size_bytes: int = 0
    """Size of the volume when the snapshot was asked for."""
    provisioning: Provisioning = Provisioning.THIN
    """That of the volume: a snapshot weighs what its volume does."""
    owner: str = ""
    """Of an internal snapshot, which nobody but the agent sees: the volume that is being cloned with its help."""
    group: str = ""
    """The group it was taken with and is deleted with."""
    requested_bytes: int = 0
    """Size that was asked for the volume, before it was rounded up; 0: not known."""


@dataclass(frozen=True, slots=True)
class SnapshotStatus:
    phase: SnapshotPhase = SnapshotPhase.PENDING
    """Failed: its data are gone."""
    size_bytes: int = 0
    """Size of a volume made of it."""
    created_at: float = 0.0
    """When it was cut."""
    lvols: tuple[tuple[str, str], ...] = ()
    """(replica name, lvol uuid) pairs."""
    message: str = ""
    """Why it is in that phase, and what to do about it."""
    observed: int = 0
    """The generation that the node of the data has settled, or failed to (`failure`)."""
    failure: Failure | None = None
    """Why it could not be settled; absent: it was."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    meta: Meta
    spec: SnapshotSpec
    status: SnapshotStatus = field(default_factory=SnapshotStatus)

    @property
    def least_bytes(self) -> int:
        """What has to be asked for to get a volume that can hold it: its size, unless that was rounded up."""
        return min(self.spec.requested_bytes or self.status.size_bytes, self.status.size_bytes)


@dataclass(frozen=True, slots=True)
class SnapshotGroupSpec:
    """`snapshots` are those of `volumes`, in the same order."""

    csi_name: str
    """The name CreateVolumeGroupSnapshot was called with."""
    volumes: tuple[str, ...]
    """Ids of the volumes."""
    snapshots: tuple[str, ...]
    """Ids of their snapshots, in the same order."""


@dataclass(frozen=True, slots=True)
class SnapshotGroupStatus:
    """PENDING: they are being taken, and hosts of the volumes may be held back."""

    phase: SnapshotPhase = SnapshotPhase.PENDING
    """Pending: they are being taken, and hosts of the volumes may be held back."""
    created_at: float = 0.0
    """When they were cut."""


@dataclass(frozen=True, slots=True)
class SnapshotGroup:
    """Snapshots of several volumes at one point in time."""

    meta: Meta
    spec: SnapshotGroupSpec
    status: SnapshotGroupStatus = field(default_factory=SnapshotGroupStatus)
