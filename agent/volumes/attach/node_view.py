"""What the CSI Node service of a cluster's node asks of volumes: read from the store, wherever their data are."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from agent.errors import NotFound
from agent.model import Disk, StorageNode, TargetState, Volume
from agent.pools.ledger import Ledger
from agent.store.following import Changes
from agent.store.interface import Store
from agent.volumes.rules.conditions import VolumeCondition, condition
from agent.volumes.rules.names import is_volume_id

CATCH_UP_S = 2.0
"""How long a call waits for the watch to tell what the controller has recorded: kubelet comes within milliseconds."""


class NodeView:
    """Implements what the services ask of volumes. `ledger` knows the pools of this node only."""

    def __init__(
        self, store: Store, node: str, ledger: Ledger, changes: Changes[Volume], state: Callable[[], TargetState]
    ) -> None:
        self._store = store
        self._node = node
        self._ledger = ledger
        self._changes = changes
        self._state = state

    def health(self) -> TargetState:
        """State of this node's target."""
        return self._state()

    async def get(self, volume_id: str) -> Volume:
        """The volume; waits briefly for one that is not known here, or not as published to this node. NotFound."""
        if is_volume_id(volume_id):
            await self._changes.until(volume_id, self._is_published, time.monotonic() + CATCH_UP_S)
        volume = await self._store.get(Volume, volume_id) if is_volume_id(volume_id) else None
        if volume is None:
            raise NotFound("volume", volume_id)
        return volume

    async def conditions(self, volumes: Sequence[Volume]) -> Sequence[VolumeCondition]:
        """How each of `volumes` is; of those elsewhere what their node recorded."""
        found = []
        for each in volumes:
            place = each.spec.placement[0] if each.spec.placement else None
            disk = await self._store.get(Disk, place.disk) if place else None
            if place is None or place.node == self._node:
                found.append(condition(each, self._state(), self._ledger, disk))
                continue
            node = await self._store.get(StorageNode, place.node)
            state = node.status.target_state if node else TargetState.UNKNOWN
            if state is TargetState.READY:
                found.append(VolumeCondition(False, "the volume is available"))
            else:
                found.append(condition(each, state, self._ledger, disk))
        return found

    def _is_published(self, volume: Volume | None) -> bool:
        return volume is not None and any(each.node == self._node for each in volume.spec.attachments)
