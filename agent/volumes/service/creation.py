"""Creating a volume: a disk is chosen, the wish recorded and settled; a pool that refuses has a neighbour."""

from __future__ import annotations

import time
from dataclasses import replace

from agent.errors import AlreadyExists, Busy, FailedPrecondition, ResourceExhausted, RpcError
from agent.model import Meta, Replica, StorageNode, Volume, VolumePhase, VolumeSpec
from agent.pools.ledger import Ledger, Pool
from agent.pools.topology import bound_to
from agent.store.interface import Store
from agent.volumes.rules import offers
from agent.volumes.rules.names import REPLICA
from agent.volumes.rules.placement import choose
from agent.volumes.rules.requests import CreateVolume
from agent.volumes.rules.settling import Settler
from agent.volumes.service.records import marked_deleting, settled
from agent.volumes.service.sources import Sources


class Creation:
    """The caller holds the volume's guard."""

    def __init__(self, store: Store, ledger: Ledger, settler: Settler, sources: Sources) -> None:
        self._store = store
        self._ledger = ledger
        self._settler = settler
        self._sources = sources

    async def create(self, name: str, request: CreateVolume) -> Volume:
        """Raises AlreadyExists, ResourceExhausted, OutOfRange, FailedPrecondition."""
        known = await self._store.get(Volume, name)
        if known is not None and known.meta.deleting:
            await self._settler.settle(known)
            known = None
        if known is not None:
            if not known.spec.csi_name:
                request.require_same(request.completed(known))
                known = await self._store.update(request.completed(known))
            request.require_same(known)
            await self._require_reachable(known, request)
            if known.status.replicas or known.status.phase is VolumePhase.FAILED:
                return await settled(self._settler, known)
        else:
            await self._settler.ready()  # no disk known yet is not the same as no disk
            self._refuse_unrecorded(name)
            request = replace(request, unfit=offers.unfit(await self._store.list(StorageNode), request.frontend))
            if request.source is not None:
                async with self._sources.opened(name, request) as complete:
                    return await self._make(name, complete, None)
        return await self._make(name, request, known)

    async def _make(self, name: str, request: CreateVolume, begun: Volume | None) -> Volume:
        refused: set[str] = set()
        # One that was recorded and never made (`begun`) holds nothing, and is as sure of its disk as a new one.
        while True:
            volume, begun = begun or await self._record(name, request, frozenset(refused)), None
            try:
                return await settled(self._settler, volume)
            except (ResourceExhausted, FailedPrecondition, RpcError) as error:
                # A final answer means that nothing is left behind. A pool that is full may have a neighbour.
                refused.add(volume.spec.placement[0].disk)
                await self._abandon(volume)
                if not isinstance(error, ResourceExhausted) or request.source is not None:
                    raise
                if not self._roomy(request, frozenset(refused)):
                    raise

    async def _require_reachable(self, volume: Volume, request: CreateVolume) -> None:
        """Raise AlreadyExists when the volume cannot be used where `request` needs it."""
        for name in bound_to(volume) if request.topology.requisite else ():
            node = await self._store.get(StorageNode, name)
            if request.topology.allows(name, node.status.zone if node else ""):
                return
            raise AlreadyExists("volume", request.name, f"on node {name}, which is not in {request.topology}")

    def _refuse_unrecorded(self, name: str) -> None:
        """Records are written first and removed last: an lvol without one is from before the database was lost."""
        if self._settler.holds_unrecorded(name):
            raise FailedPrecondition(
                f"a disk holds data named {name} of which there is no record: they are left alone. Bring them back "
                f"(quarry volumes adopt {name}) or destroy them (quarry volumes discard {name}), then repeat the call"
            )

    async def _record(self, name: str, request: CreateVolume, avoid: frozenset[str]) -> Volume:
        """Choose a disk, count the volume on it and write it down."""
        pool, size_bytes = self._choose(request, avoid)
        self._ledger.reserve(name, pool.disk, size_bytes, request.provisioning)
        volume = Volume(
            meta=Meta(name, created_at=time.time()),
            spec=VolumeSpec(
                csi_name=request.name,
                size_bytes=size_bytes,
                tier=request.tier,
                provisioning=request.provisioning,
                replica_count=request.replica_count,
                placement=(Replica(REPLICA, pool.node, pool.disk),),
                frontend=request.frontend,
                qos=request.qos,
                connect=request.connect,
                parameters=request.parameters,
                source=request.source,
                requested_bytes=request.required_bytes,
            ),
        )
        try:
            return await self._store.create(volume)
        except AlreadyExists as error:
            self._ledger.release(name)
            raise Busy(f"volume {name} was recorded by another controller just now; repeat the call") from error
        except BaseException:
            self._ledger.release(name)
            raise

    def _choose(self, request: CreateVolume, avoid: frozenset[str]) -> tuple[Pool, int]:
        return choose(self._ledger, request.placement(avoid))

    def _roomy(self, request: CreateVolume, avoid: frozenset[str]) -> bool:
        try:
            self._choose(request, avoid)
        except ResourceExhausted:
            return False
        return True

    async def _abandon(self, volume: Volume) -> None:
        current = await self._store.get(Volume, volume.meta.name)
        if current is not None:
            await self._settler.settle(await marked_deleting(self._store, current))
