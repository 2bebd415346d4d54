"""StorageNode: a machine with its target."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from agent.model.common import Frontend, Meta


class TargetState(StrEnum):
    UNKNOWN = "Unknown"
    STARTING = "Starting"
    """Connected; base bdevs and exports are being rebuilt."""
    READY = "Ready"
    UNREACHABLE = "Unreachable"


@dataclass(frozen=True, slots=True)
class StorageNodeSpec:
    cordoned: bool = False


@dataclass(frozen=True, slots=True)
class StorageNodeStatus:
    addresses: tuple[str, ...] = ()
    zone: str = ""
    """The part of the cluster that fails together (a rack, a room, a cloud's zone); empty: none told."""
    host_nqn: str = ""
    frontends: tuple[Frontend, ...] = ()
    max_volumes: int = 0
    """How many volumes may be published to it; 0: no limit."""
    target_state: TargetState = TargetState.UNKNOWN
    target_version: str = ""
    last_heartbeat: float = 0.0


@dataclass(frozen=True, slots=True)
class StorageNode:
    meta: Meta
    spec: StorageNodeSpec = field(default_factory=StorageNodeSpec)
    status: StorageNodeStatus = field(default_factory=StorageNodeStatus)
