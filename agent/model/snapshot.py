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
    volume: str
    node: str = ""
    disk: str = ""
    size_bytes: int = 0
    """Size of the volume when the snapshot was asked for."""
    provisioning: Provisioning = Provisioning.THIN
    """That of the volume: a snapshot weighs what its volume does."""
    owner: str = ""
    """Of an internal snapshot, which nobody but the agent sees: the volume that is being cloned with its help."""
    group: str = ""
    """The group it was taken with and is deleted with."""


@dataclass(frozen=True, slots=True)
class SnapshotStatus:
    phase: SnapshotPhase = SnapshotPhase.PENDING
    size_bytes: int = 0
    created_at: float = 0.0
    lvols: tuple[tuple[str, str], ...] = ()
    """(replica name, lvol uuid) pairs."""
    message: str = ""
    observed: int = 0
    """The generation that the node of the data has settled, or failed to (`failure`)."""
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    meta: Meta
    spec: SnapshotSpec
    status: SnapshotStatus = field(default_factory=SnapshotStatus)


@dataclass(frozen=True, slots=True)
class SnapshotGroupSpec:
    """`snapshots` are those of `volumes`, in the same order."""

    csi_name: str
    volumes: tuple[str, ...]
    snapshots: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SnapshotGroupStatus:
    """PENDING: they are being taken, and hosts of the volumes may be held back."""

    phase: SnapshotPhase = SnapshotPhase.PENDING
    created_at: float = 0.0


@dataclass(frozen=True, slots=True)
class SnapshotGroup:
    """Snapshots of several volumes at one point in time."""

    meta: Meta
    spec: SnapshotGroupSpec
    status: SnapshotGroupStatus = field(default_factory=SnapshotGroupStatus)
