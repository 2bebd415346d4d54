"""What of a change of a resource is worth telling whoever looks at it, beside what its status says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from agent.model import (
    ALIVE,
    Condition,
    ConditionStatus,
    Disk,
    DiskPhase,
    Failure,
    Resource,
    Snapshot,
    SnapshotPhase,
    StorageNode,
    TargetState,
    Volume,
    VolumePhase,
)
from agent.pools.disk_conditions import HEALTH, IO_ERRORS, POWER_LOSS, SPACE_LOW

_WELL = {
    (ALIVE, ConditionStatus.TRUE),
    (HEALTH, ConditionStatus.TRUE),
    (IO_ERRORS, ConditionStatus.FALSE),
    (POWER_LOSS, ConditionStatus.TRUE),
    (SPACE_LOW, ConditionStatus.FALSE),
}
"""Conditions that are news only to whoever was told of their opposite. All others are trouble."""


@dataclass(frozen=True, slots=True)
class News:
    """`reason`: a word in CamelCase; `message`: a sentence for a person."""

    reason: str
    message: str
    is_warning: bool = False


def news(before: Resource, after: Resource) -> Iterator[News]:
    """What happened between the two. Nothing of what every volume goes through: that would be as much as all writes."""
    match before, after:
        case Disk(), Disk():
            yield from _of_disk(before, after)
            yield from _of_conditions(before.status.conditions, after.status.conditions)
        case Volume(), Volume():
            has_failed, had_failed = (each.status.phase is VolumePhase.FAILED for each in (after, before))
            yield from _of_data(had_failed, has_failed, after.status.message)
            yield from _of_failure(before.status.failure, after.status.failure)
            yield from _of_conditions(before.status.conditions, after.status.conditions)
        case Snapshot(), Snapshot():
            has_failed, had_failed = (each.status.phase is SnapshotPhase.FAILED for each in (after, before))
            yield from _of_data(had_failed, has_failed, after.status.message)
            yield from _of_failure(before.status.failure, after.status.failure)
        case StorageNode(), StorageNode():
            yield from _of_target(before.status.target_state, after.status.target_state)
            yield from _of_conditions(before.status.conditions, after.status.conditions)


def _of_disk(before: Disk, after: Disk) -> Iterator[News]:
    was, now, told = before.status.phase, after.status.phase, after.status.message
    if was is now:
        return
    match now:
        case DiskPhase.FAILED | DiskPhase.MISSING:
            yield News(now.value, told or f"{after.status.path} is {now.value.lower()}", is_warning=True)
        case DiskPhase.FORMATTING:
            yield News(now.value, f"a pool is being made on {after.status.path}")
        case DiskPhase.READY:
            yield News(now.value, f"{after.status.path} is in service")
        case DiskPhase.RELEASING:
            yield News(now.value, f"the pool is being taken off {after.status.path}")
        case DiskPhase.AVAILABLE if was is DiskPhase.RELEASING:
            yield News("Released", f"{after.status.path} is blank and out of service")
        case _:
            return


def _of_data(had_failed: bool, has_failed: bool, message: str) -> Iterator[News]:
    if has_failed and not had_failed:
        yield News("Failed", message, is_warning=True)
    if had_failed and not has_failed:
        yield News("Recovered", "its data are there again")


def _of_failure(before: Failure | None, after: Failure | None) -> Iterator[News]:
    if after is not None and after != before:
        yield News(after.code, after.message, is_warning=True)


def _of_conditions(before: Iterable[Condition], after: Iterable[Condition]) -> Iterator[News]:
    known = {each.type: (each.status, each.reason) for each in before}
    for each in after:
        is_well = (each.type, each.status) in _WELL
        if known.get(each.type) == (each.status, each.reason) or (is_well and each.type not in known):
            continue
        yield News(each.type if each.reason == each.status.value else each.reason, each.message, is_warning=not is_well)


def _of_target(before: TargetState, after: TargetState) -> Iterator[News]:
    if before is after:
        return
    if after is TargetState.READY:
        yield News("TargetReady", "the target serves its volumes")
    elif before is TargetState.READY and after is not TargetState.UNKNOWN:  # then it is the node that is away
        yield News("TargetAway", f"the target is {after.value}: volumes on this node wait for it", is_warning=True)
