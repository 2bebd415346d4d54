"""What the controller that leads tells of nodes that give no sign of life: on them, and on what they have.

A node cannot say of itself that it is dead. Its records say what was so last, until somebody else puts them right.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from agent.errors import Busy, Conflict, NotFound
from agent.model import ALIVE, Condition, ConditionStatus, Disk, StorageNode, TargetState, Volume
from agent.pools.disk_conditions import with_condition, without_condition
from agent.store.interface import Store
from agent.tasks.operations import Operations

log = logging.getLogger(__name__)

DATA_AWAY = "DataAway"
"""Condition of a Volume or Disk whose node gives no sign of life; taken off when it does."""

NODE_DEAD = "NodeDead"

TOLD_AFTER_S = 15.0
"""How long after its Lease has run out a node is called dead: an agent that restarts is none."""

_PARALLEL = 16


class RollCall:
    """`silent_s`: for how long a node has given no sign of life (0.0: it gives them; None: not known yet)."""

    def __init__(self, store: Store, operations: Operations, silent_s: Callable[[str], float | None]) -> None:
        self._store = store
        self._operations = operations
        self._silent_s = silent_s
        self._slots = asyncio.Semaphore(_PARALLEL)

    def is_dead(self, node: str) -> bool:
        """Whether it has been silent for so long that it is called dead."""
        silent_s = self._silent_s(node)
        return silent_s is not None and silent_s >= TOLD_AFTER_S

    async def look(self) -> None:
        """Write down what is not written yet. Raises what the store raises; to be called again and again."""
        for node in await self._store.list(StorageNode):
            try:
                await self._tell_of_node(node)
            except (Conflict, NotFound):
                continue  # it wrote itself: the next look sees
        await self._tell_of_data()

    async def _tell_of_node(self, node: StorageNode) -> None:
        name = node.meta.name
        silent_s = self._silent_s(name)
        if silent_s is None or 0.0 < silent_s < TOLD_AFTER_S:
            return
        status = node.status
        known = next((each for each in status.conditions if each.type == ALIVE), None)
        if silent_s:
            message = (
                f"the agent of node {name} gives no sign of life: whether its volumes are served is not known. "
                f"Start the node, or if it is gone for good: quarry nodes forget {name}"
            )
            new = Condition(ALIVE, ConditionStatus.FALSE, NODE_DEAD, message, time.time())
            if known is None or known.status is not ConditionStatus.FALSE:
                status = replace(status, target_state=TargetState.UNKNOWN)
                log.error("node %s is dead: it has not renewed its Lease for %.0f s", name, silent_s)
        else:
            message = f"the agent of node {name} renews its Lease"
            new = Condition(ALIVE, ConditionStatus.TRUE, "LeaseRenewed", message, time.time())
        status = replace(status, conditions=with_condition(status.conditions, new))
        if status != node.status:
            await self._store.update(replace(node, status=status))

    async def _tell_of_data(self) -> None:
        wrong = []
        for volume in await self._store.list(Volume):
            nodes = [each.node for each in volume.spec.placement]
            if self._condition(nodes) != _told(volume):
                wrong.append(self._tell_of_volume(volume.meta.name))
        for disk in await self._store.list(Disk):
            if self._condition([disk.status.node] if disk.status.pool.uuid else []) != _told(disk):
                wrong.append(self._tell_of_disk(disk))
        await asyncio.gather(*wrong)

    def _condition(self, nodes: list[str]) -> str:
        dead = [node for node in nodes if self.is_dead(node)]
        if not dead:
            return ""
        return f"node {dead[0]}, which has the data, gives no sign of life; whether they are served is not known"

    async def _tell_of_volume(self, name: str) -> None:
        async with self._slots:
            try:
                async with self._operations.guard.hold(name):
                    volume = await self._store.get(Volume, name)
                    if volume is not None:
                        await self._tell(volume, [each.node for each in volume.spec.placement])
            except Busy:
                return  # the next look sees

    async def _tell_of_disk(self, disk: Disk) -> None:
        async with self._slots:
            await self._tell(disk, [disk.status.node] if disk.status.pool.uuid else [])

    async def _tell(self, of: Volume | Disk, nodes: list[str]) -> None:
        message, before = self._condition(nodes), of.status.conditions
        new = Condition(DATA_AWAY, ConditionStatus.TRUE, NODE_DEAD, message, time.time())
        conditions = with_condition(before, new) if message else without_condition(before, DATA_AWAY)
        if conditions == before:
            return
        try:
            if isinstance(of, Volume):
                await self._store.update(replace(of, status=replace(of.status, conditions=conditions)))
            else:
                await self._store.update(replace(of, status=replace(of.status, conditions=conditions)))
        except (Conflict, NotFound):
            return  # somebody else wrote: the next look sees


def _told(of: Volume | Disk) -> str:
    return next((each.message for each in of.status.conditions if each.type == DATA_AWAY), "")
