"""Growing a volume: room is promised first, and the wish taken back when the target refuses it."""

from __future__ import annotations

from dataclasses import replace

from agent.errors import FailedPrecondition, OutOfRange, QuarryError, ResourceExhausted
from agent.model import Volume, VolumePhase
from agent.pools.ledger import Ledger
from agent.store.interface import Store
from agent.volumes.rules import local
from agent.volumes.rules.settling import Settler
from agent.volumes.service.records import existing, settled


class Expansion:
    """The caller holds the volume's guard."""

    def __init__(self, store: Store, ledger: Ledger, settler: Settler) -> None:
        self._store = store
        self._ledger = ledger
        self._settler = settler

    async def expand(self, name: str, required_bytes: int, limit_bytes: int) -> Volume:
        """Raises OutOfRange, ResourceExhausted, FailedPrecondition, NotFound."""
        volume = await existing(self._store, name)
        if volume.status.phase is VolumePhase.FAILED:
            volume = await settled(
                self._settler, volume
            )  # refused before more room is promised to a volume without its data
        await self._settler.ready()
        disk = volume.spec.placement[0].disk
        pool = self._ledger.pool(disk)
        if pool is None:
            raise FailedPrecondition(f"disk {disk} of volume {name} is not ready; the agent's log has the reason")
        size_bytes = pool.round_up(required_bytes)
        if limit_bytes and size_bytes > limit_bytes and volume.spec.size_bytes < required_bytes:
            raise OutOfRange(
                f"limit_bytes: {limit_bytes} leaves no room to round {required_bytes} up to whole clusters of "
                f"{pool.cluster_bytes} bytes; raise the limit"
            )
        if size_bytes <= volume.spec.size_bytes:
            return await settled(self._settler, volume)
        local.require_growable(volume)
        if size_bytes > (most := self._ledger.ceiling(pool, volume.spec.provisioning)):
            raise OutOfRange(f"required_bytes: {size_bytes} is more than disk {disk} can ever hold ({most})")
        self._ledger.require_space(disk)
        if not self._ledger.can_grow(name, size_bytes):
            raise ResourceExhausted(f"disk {disk} has no room now to grow volume {name} to {size_bytes} bytes")
        return await self._grow(volume, disk, size_bytes, required_bytes)

    async def _grow(self, volume: Volume, disk: str, size_bytes: int, requested_bytes: int) -> Volume:
        before, spec = volume.spec, replace(volume.spec, size_bytes=size_bytes, requested_bytes=requested_bytes)
        self._ledger.reserve(volume.meta.name, disk, size_bytes, volume.spec.provisioning)
        try:
            wanted = await self._store.update(replace(volume, spec=spec))
        except QuarryError:
            self._ledger.reserve(volume.meta.name, disk, before.size_bytes, before.provisioning)
            raise
        try:
            return await settled(self._settler, wanted)
        except ResourceExhausted:
            # Nothing grew: take the wish back, or the loop would try for ever.
            as_before = replace(wanted.spec, size_bytes=before.size_bytes, requested_bytes=before.requested_bytes)
            await self._store.update(replace(wanted, spec=as_before))
            self._ledger.reserve(volume.meta.name, disk, before.size_bytes, before.provisioning)
            raise
