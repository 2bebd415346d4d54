"""How far the deletion of a volume or snapshot is, by its record."""

from __future__ import annotations

from agent.model import Snapshot, SnapshotPhase, Volume, VolumePhase

HELD = "DeletionHeld"
"""Condition of a Volume that is deleted and not unpublished yet."""


def is_data_gone(resource: Volume | Snapshot) -> bool:
    """Whether the node says that the data of something deleted are gone: its record may go."""
    return resource.meta.deleting and is_gone(resource) and resource.status.observed == resource.meta.generation


def is_gone(resource: Volume | Snapshot) -> bool:
    if isinstance(resource, Volume):
        return resource.status.phase is VolumePhase.DELETING and not resource.status.replicas
    return resource.status.phase is SnapshotPhase.DELETING and not resource.status.lvols
