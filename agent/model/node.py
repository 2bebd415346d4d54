"""StorageNode: a machine with its target."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from agent.model.common import Condition, Frontend, Meta


class TargetState(StrEnum):
    UNKNOWN = "Unknown"
    STARTING = "Starting"
    """Connected; base bdevs and exports are being rebuilt."""
    READY = "Ready"
    UNREACHABLE = "Unreachable"


ALIVE = "Alive"
"""Condition of a StorageNode: whether its agent gives signs of life. The controller that leads writes it."""


@dataclass(frozen=True, slots=True)
class StorageNodeSpec:
    cordoned: bool = False
    """Whether its disks take no new volumes."""


@dataclass(frozen=True, slots=True)
class StorageNodeStatus:
    addresses: tuple[str, ...] = ()
    """Where hosts connect to its volumes."""
    zone: str = ""
    """The part of the cluster that fails together (a rack, a room, a cloud's zone); empty: none told."""
    host_nqn: str = ""
    """By which targets know this machine when it connects."""
    frontends: tuple[Frontend, ...] = ()
    """How volumes can be attached on it."""
    max_volumes: int = 0
    """How many volumes may be published to it; 0: no limit."""
    target_state: TargetState = TargetState.UNKNOWN
    """As its agent said last; Unknown when that gives no sign of life."""
    target_version: str = ""
    """What the target calls itself."""
    target_mode: str = ""
    """How the target waits for work: polling (its CPUs are never idle) or interrupt; empty: not known yet."""
    last_heartbeat: float = 0.0
    """When its agent last wrote this status, which it does when something changes. Signs of life are in its Lease."""
    conditions: tuple[Condition, ...] = ()
    """Alive: whether its agent gives signs of life, as the controller that leads sees it."""


@dataclass(frozen=True, slots=True)
class StorageNode:
    meta: Meta
    spec: StorageNodeSpec = field(default_factory=StorageNodeSpec)
    status: StorageNodeStatus = field(default_factory=StorageNodeStatus)
