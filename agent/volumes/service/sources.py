"""Volumes made of others: what a snapshot or a volume asks of a new volume that gets its data.

The data stay where they are and are shared, so the new volume lies on the source's disk. A volume is cloned by way of
an internal snapshot of it, which goes when the clone no longer needs it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from agent.errors import InvalidArgument, OutOfRange, Unavailable
from agent.model import SourceKind, Volume, VolumeSource
from agent.pools.ledger import Ledger
from agent.store.interface import Store
from agent.volumes.rules.placement import choose
from agent.volumes.rules.requests import CreateVolume
from agent.volumes.service.lineage import Lineage
from agent.volumes.service.snapshot_records import SnapshotRecords
from agent.volumes.service.snapshots import SnapshotService


class Sources:
    """Completes requests that name a source."""

    def __init__(
        self, store: Store, ledger: Ledger, snapshots: SnapshotService, records: SnapshotRecords, lineage: Lineage
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._snapshots = snapshots
        self._records = records
        self._lineage = lineage

    @asynccontextmanager
    async def opened(self, volume: str, request: CreateVolume) -> AsyncIterator[CreateVolume]:
        """The request with the snapshot, size and disk that its source means; the snapshot stays during the block.

        And beyond it, if the block recorded `volume`. Raises NotFound for the source, OutOfRange for a size that is
        less than the source's, ResourceExhausted when there is no room where the source is.
        """
        if request.source is None:
            yield request
            return
        complete, snapshot = await self._complete(volume, request, request.source)
        try:
            yield complete
        finally:
            if await self._store.get(Volume, volume) is None:
                self._lineage.served(volume, snapshot)

    async def _complete(self, volume: str, request: CreateVolume, source: VolumeSource) -> tuple[CreateVolume, str]:
        if source.kind is SourceKind.VOLUME:
            of = await self._records.source(source.id)
            request = self._placed(request, of.spec.placement[0].disk, of.status.size_bytes)
            snapshot = await self._snapshots.take_for_clone(source.id, volume)
            self._lineage.expect(volume, snapshot.meta.name)
        else:
            self._lineage.expect(volume, source.id)  # first, so that it cannot go once it was seen
            try:
                snapshot = await self._snapshots.usable(source.id)
                request = self._placed(request, snapshot.spec.disk, snapshot.status.size_bytes)
            except BaseException:
                self._lineage.served(volume, source.id)
                raise
        return replace(request, source=replace(source, snapshot=snapshot.meta.name)), snapshot.meta.name

    def shares(self, volume: str) -> bool:
        """Whether part of what `volume` holds is in a snapshot: what it overwrites needs new clusters."""
        return bool(self._lineage.parent_of(volume))

    def _placed(self, request: CreateVolume, disk: str, size_bytes: int) -> CreateVolume:
        """`request` with the place and the least size that its source leaves it."""
        if request.limit_bytes and request.limit_bytes < size_bytes:
            raise OutOfRange(f"limit_bytes: {request.limit_bytes} is less than the source has ({size_bytes})")
        pool = self._ledger.pool(disk)
        if pool is None:
            raise Unavailable(f"disk {disk} of the source is not ready; repeat the call when it is")
        # The source was rounded up too: who asks for the same as its owner did is given the same.
        if request.required_bytes and pool.round_up(request.required_bytes) < size_bytes:
            raise OutOfRange(
                f"required_bytes: {request.required_bytes} is less than the source has; ask for {size_bytes} or more"
            )
        if "tier" in dict(request.parameters) and request.tier is not pool.tier:
            raise InvalidArgument(
                "parameters['tier']",
                f"{request.tier}, but the source is on a disk of tier {pool.tier}",
                "leave it out: a volume shares its source's disk",
            )
        placed = replace(request, required_bytes=request.required_bytes or size_bytes, tier=pool.tier, disk=disk)
        choose(self._ledger, placed.placement())
        return placed
