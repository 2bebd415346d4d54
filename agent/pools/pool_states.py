"""What the record of a disk says of its pool at each turn. Pure but for the time of a condition."""

from __future__ import annotations

import time
from dataclasses import replace

from agent.errors import Unavailable
from agent.model import Condition, ConditionStatus, Disk, DiskPhase, PoolStatus
from agent.pools.disk_conditions import ATTENTION
from agent.pools.why import Why


def attention_for(why: Why, text: str) -> Condition:
    return Condition(ATTENTION, ConditionStatus.TRUE, why.value, text, time.time())


def refused_for(kind: str, why: Why, text: str) -> Condition:
    return Condition(kind, ConditionStatus.FALSE, why.value, text, time.time())


def in_phase(disk: Disk, phase: DiskPhase) -> Disk:
    return replace(disk, status=replace(disk.status, phase=phase, message=""))


def released(disk: Disk) -> Disk:
    phase = DiskPhase.AVAILABLE if disk.status.eligible else DiskPhase.INELIGIBLE
    status = replace(disk.status, phase=phase, message="", pool=PoolStatus(), conditions=())
    return replace(disk, status=status)


def some(names: list[str], limit: int = 10) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def gone(disk: Disk) -> Unavailable:
    return Unavailable(f"pool {disk.pool_name} is gone from the target: the disk failed or was removed")
