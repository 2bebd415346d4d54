"""Attachments name the host that a node is. When a node goes by another host NQN its attachments follow.

Else the node would be shut out of what it has published, and the machine that bore the name before would be let in.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from agent.model import Attachment, StorageNode, Volume
from agent.store.interface import Store
from agent.tasks.operations import Operations
from agent.tasks.work import Work

log = logging.getLogger(__name__)


class HostNames:
    """Follows what nodes are called, and puts attachments right."""

    def __init__(self, store: Store, operations: Operations) -> None:
        self._store = store
        self._operations = operations
        self._nqns: dict[str, str] = {}
        self._work = Work("attachments of volume", self._put_right)

    async def stop(self) -> None:
        await self._work.stop()

    async def node_seen(self, node: StorageNode) -> None:
        """A node without a host NQN has not told it yet: nothing is known of it."""
        name, nqn = node.meta.name, node.status.host_nqn
        if nqn and self._nqns.get(name) != nqn:
            self._nqns[name] = nqn
            for volume in await self._store.list(Volume):
                self.volume_seen(volume)

    def volume_seen(self, volume: Volume) -> None:
        if corrected(volume, self._nqns) is not volume:
            self._work.stir(volume.meta.name)

    async def _put_right(self, name: str) -> None:
        await self._operations.run(name, lambda: self._put_right_held(name))

    async def _put_right_held(self, name: str) -> None:
        volume = await self._store.get(Volume, name)
        if volume is not None:
            await _write(self._store, volume, self._nqns)


async def put_right(store: Store, nqns: Mapping[str, str]) -> None:
    """Once, before anybody else writes: attachments of these nodes."""
    for volume in await store.list(Volume):
        await _write(store, volume, nqns)


async def _write(store: Store, volume: Volume, nqns: Mapping[str, str]) -> None:
    right = corrected(volume, nqns)
    if right is not volume:
        before = [each.host_nqn for each in volume.spec.attachments]
        log.warning("volume %s was published to hosts that nodes are no longer (%s)", volume.meta.name, before)
        await store.update(right)


def corrected(volume: Volume, nqns: Mapping[str, str]) -> Volume:
    """`volume` with the host NQNs that its nodes have now, itself when they are right. Nodes not in `nqns` stay."""
    attachments = tuple(_corrected(each, nqns.get(each.node, "")) for each in volume.spec.attachments)
    if attachments == volume.spec.attachments:
        return volume
    return replace(volume, spec=replace(volume.spec, attachments=attachments))


def _corrected(attachment: Attachment, nqn: str) -> Attachment:
    return replace(attachment, host_nqn=nqn) if nqn and nqn != attachment.host_nqn else attachment
