"""What all resources share: their metadata and conditions, the words of the domain, names of what is ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

NQN_PREFIX = "nqn.2026-11.storage.quarry"
"""Prefix of every subsystem we own; nothing else is ever deleted."""

VOLUME_NQN_PREFIX = f"{NQN_PREFIX}:vol:"
"""Prefix of the subsystems that export volumes; the volume's id follows."""

POOL_PREFIX = "quarry-"
"""Prefix of every lvstore we own: `quarry-<disk id>`."""

LVOL_NAME_MAX = 63
"""SPDK_LVOL_NAME_MAX is 64 with the terminating NUL (measured: 63 accepted, 64 answers -22)."""


class Tier(StrEnum):
    NVME = "nvme"
    SSD = "ssd"
    HDD = "hdd"


class Provisioning(StrEnum):
    THIN = "thin"
    THICK = "thick"


class Frontend(StrEnum):
    """How a host sees a volume as a block device."""

    NVME_TCP = "nvme-tcp"
    UBLK = "ublk"
    LOOP = "loop"

    @property
    def is_local(self) -> bool:
        """Only the node that has the data can attach it."""
        return self is not Frontend.NVME_TCP


class AccessMode(StrEnum):
    """CSI access modes by their Kubernetes short names."""

    RWO = "ReadWriteOnce"
    RWOP = "ReadWriteOncePod"
    ROX = "ReadOnlyMany"
    RWX = "ReadWriteMany"
    """Raw block only: a filesystem of ours knows of one machine that writes."""
    ONE_WRITER = "OneWriterManyReaders"
    """CSI's MULTI_NODE_SINGLE_WRITER, which Kubernetes has no name for. Raw block only."""

    @property
    def is_raw(self) -> bool:
        """Only for raw block devices: others may write beside the one who has it."""
        return self in (AccessMode.RWX, AccessMode.ONE_WRITER)


class ConditionStatus(StrEnum):
    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True)
class Meta:
    """What every resource carries. `version` is the store's resource version (0: never stored)."""

    name: str
    version: int = 0
    created_at: float = 0.0
    deleting: bool = False
    generation: int = field(default=0, compare=False)
    """Of the wish: grows with every change of `spec` and with the deletion. 0: the store does not count."""
    held_by: tuple[str, ...] = field(default=(), compare=False)
    """Finalizers of others: a deleted resource stays until they are taken off."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something could not be settled, for whoever waits for it: the name of an error class and its sentence."""

    code: str
    """Kind of error, which becomes the gRPC code of the call that waits."""
    message: str
    """For a person."""


@dataclass(frozen=True, slots=True)
class Condition:
    type: str
    """What the condition is about."""
    status: ConditionStatus
    """Whether it is so."""
    reason: str = ""
    """Why, in one word, for programs."""
    message: str = ""
    """Why, and what to do about it, for a person."""
    changed_at: float = 0.0
    """When it last changed."""
