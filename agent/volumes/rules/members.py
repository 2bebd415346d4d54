"""A snapshot group as callers see it."""

from __future__ import annotations

from dataclasses import dataclass

from agent.model import Snapshot, SnapshotGroup


@dataclass(frozen=True, slots=True)
class Members:
    """A group and its snapshots."""

    group: SnapshotGroup
    snapshots: tuple[Snapshot, ...]
