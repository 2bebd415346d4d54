"""What is said of a disk that is out of the ordinary, and what follows from it. Pure."""

from __future__ import annotations

from dataclasses import replace

from agent.model import Condition, ConditionStatus, Disk, Health
from agent.pools.why import Why

ATTENTION = "NeedsAttention"
"""Condition of a Disk whose pool is served though something is not as it should be; the reason is one of Why."""

IO_ERRORS = "IoErrors"
"""Condition of a Disk: operations on it failed lately. It takes no new volumes."""

HEALTH = "Healthy"
"""Condition of a Disk in service: what it says of itself; the reason is one of agent.disks.health.Health."""

POWER_LOSS = "PowerLossSafe"
"""Condition of a Disk in service, files excepted: whether what was synced survives a power cut. The reason is one of
agent.disks.write_cache.State, or `PROTECTED`. One that says no takes no new volumes."""

PROTECTED = "Protected"
"""By a rule of the configuration (`power_loss_protected`)."""

TARGET_FULL = "TargetFull"
"""Condition of a Disk: the target of its node exports nearly as many volumes as it can. It takes no new ones."""

METADATA_FULL = "MetadataFull"
"""Condition of a Disk: the metadata pages of its pool are used up. It takes no new volumes."""

ZEROED = "FreeSpaceZeroed"
"""Condition of a Disk whose free space is being zeroed: False, with how far it is. Gone when it is done."""

SPACE_LOW = "SpaceLow"
"""Condition of a Disk: its pool is short of space; the reason is the name of agent.pools.space.Space."""

IF_LOST = "if it is gone for good: `quarry disks forget {0}` (in a cluster: `kubectl delete disk {0}`)"


def with_condition(conditions: tuple[Condition, ...], new: Condition) -> tuple[Condition, ...]:
    """`conditions` with `new` in the place of the one of its type. The same said again is not news."""
    for known in conditions:
        if known.type == new.type and (known.status, known.reason, known.message) == (
            new.status,
            new.reason,
            new.message,
        ):
            return conditions
    return (*without_condition(conditions, new.type), new)


def without_condition(conditions: tuple[Condition, ...], kind: str) -> tuple[Condition, ...]:
    return tuple(each for each in conditions if each.type != kind)


def with_health(disk: Disk, condition: Condition) -> Disk:
    return replace(disk, status=replace(disk.status, conditions=with_condition(disk.status.conditions, condition)))


def failing(disk: Disk) -> Condition | None:
    """What says that the disk fails: its I/O, or itself."""
    for each in disk.status.conditions:
        if each.type == IO_ERRORS and each.status is ConditionStatus.TRUE:
            return each
        if each.type == HEALTH and each.reason == Health.FAILING:
            return each
    return None


def power_loss(disk: Disk) -> Condition | None:
    """What is known of its write cache, None: nothing."""
    return next((each for each in disk.status.conditions if each.type == POWER_LOSS), None)


def attention(disk: Disk, *whys: Why) -> Condition | None:
    """What is not as it should be with a disk that is served, if it is one of these."""
    return next((each for each in disk.status.conditions if each.type == ATTENTION and each.reason in whys), None)


def told(disk: Disk, *kinds: str) -> Condition | None:
    """The first condition of these that is said to be True."""
    said = (each for each in disk.status.conditions if each.type in kinds and each.status is ConditionStatus.TRUE)
    return next(said, None)


def being_zeroed(disk: Disk) -> str:
    """How far the zeroing of its free space is; "": nothing is being zeroed."""
    return next((each.message for each in disk.status.conditions if each.type == ZEROED), "")


def why_not(disk: Disk) -> str:
    """What an operator can do that it takes new volumes, where that is not to be seen at the disk itself."""
    full = told(disk, TARGET_FULL, METADATA_FULL)
    return full.message if full else ""


def takes_new_volumes(disk: Disk) -> bool:
    """Whether volumes may be placed on it: it is claimed, nothing says that it fails or loses what was synced, and its
    target can export them and describe what they hold."""
    cache = power_loss(disk)
    is_safe = cache is None or cache.status is not ConditionStatus.FALSE
    is_whole = attention(disk, Why.SHRUNK, Why.REMOVED) is None
    is_full = told(disk, TARGET_FULL, METADATA_FULL) is not None
    return disk.spec.claimed is True and failing(disk) is None and is_safe and is_whole and not is_full
