"""How many volumes the target can export: told before it refuses one, and new volumes are placed elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from agent.model import Condition, ConditionStatus, Disk
from agent.pools.disk_conditions import TARGET_FULL, told, with_condition, without_condition
from agent.pools.disk_records import DiskRecords
from agent.pools.pools import Pools, is_in_service
from agent.spdk import nvmf
from agent.spdk.client import Rpc
from agent.tasks.background import Background
from agent.volumes.target.observed import Observed

log = logging.getLogger(__name__)

LOOK_S = 2.0
OTHERS = 2
"""Subsystems that are no volumes: the target's own for discovery, and the one that holds the port."""

MARGIN_MAX = 64
"""As many calls may be under way when the limit is seen: each may take a subsystem yet."""


class SubsystemLimit:
    """`observed`: what the target has, None while it is away."""

    def __init__(self, rpc: Rpc, records: DiskRecords, pools: Pools, observed: Callable[[], Observed | None]) -> None:
        self._rpc = rpc
        self._records = records
        self._pools = pools
        self._observed = observed
        self._limit: int | None = None
        self._background = Background()

    async def start(self) -> None:
        self._background.every("target-limit", LOOK_S, self._look)

    async def stop(self) -> None:
        await self._background.stop()

    async def brought_up(self) -> None:
        self._limit = await nvmf.max_subsystems(self._rpc)

    async def _look(self) -> None:
        observed = self._observed()
        if observed is not None:
            await self._judge(observed)

    async def _judge(self, observed: Observed) -> None:
        """Nothing is asked of the target: what there is is counted."""
        if self._limit is None:
            return
        used = OTHERS + sum(1 for name in observed.volumes() if observed.get(name).subsystem is not None)
        margin = max(1, min(MARGIN_MAX, self._limit // 16))
        full = used >= self._limit - margin
        for disk in await self._records.list():
            if is_in_service(disk) and full != bool(told(disk, TARGET_FULL)):
                changed = await self._records.change(disk, self._full if full else _not_full)
                self._pools.follow(changed)
                log.log(logging.WARNING if full else logging.INFO, "disk %s takes %s volumes: %d of %d subsystems",
                        disk.meta.name, "no new" if full else "new", used, self._limit)  # fmt: skip

    def _full(self, disk: Disk) -> Disk:
        text = (
            f"the target of this node exports nearly as many volumes as it can ({self._limit} subsystems), so new ones "
            "are placed elsewhere: delete some, or raise it where the target is started (chart: target.maxSubsystems; "
            "else nvmf_set_max_subsystems in its start-up configuration) and restart it"
        )
        condition = Condition(TARGET_FULL, ConditionStatus.TRUE, "SubsystemLimit", text, time.time())
        return replace(disk, status=replace(disk.status, conditions=with_condition(disk.status.conditions, condition)))


def _not_full(disk: Disk) -> Disk:
    return replace(disk, status=replace(disk.status, conditions=without_condition(disk.status.conditions, TARGET_FULL)))
