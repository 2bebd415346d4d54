"""Making a volume's lvol of a snapshot: the data are there at once, shared until one of the two is written to."""

from __future__ import annotations

import asyncio

from agent.errors import FailedPrecondition, QuarryError, RpcError
from agent.model import VolumeSource
from agent.spdk import bdev, lvol
from agent.spdk.client import Rpc
from agent.volumes.rules.names import helper_name
from agent.volumes.rules.plan import CreateLvol, DesiredReplica, ResizeLvol
from agent.volumes.rules.snapshot_plan import (
    CloneLvol,
    DesiredSeed,
    SeedAction,
    SetParent,
    SnapshotSeen,
    VolumeSeen,
    seed,
)
from agent.volumes.service.lineage import Lineage
from agent.volumes.target import actions
from agent.volumes.target.refusals import pool_refusal

ATTEMPTS = 5
RETRY_DELAY_S = 0.02


class Seeder:
    """Idempotent: each attempt reads what is there and does what is missing."""

    def __init__(self, rpc: Rpc, lineage: Lineage) -> None:
        self._rpc = rpc
        self._lineage = lineage

    async def settle(self, source: VolumeSource, desired: DesiredReplica) -> None:
        """The lvol of a volume that is not recorded as made yet; of one to be deleted, nothing but its lvol is left.

        FailedPrecondition: the source's data are gone. ResourceExhausted: the pool refuses. Busy: the source is being
        changed.
        """
        wanted = DesiredSeed(
            desired.pool, desired.volume, source.snapshot, helper_name(desired.volume), desired.size_bytes
        )
        async with self._lineage.lvols.hold(wanted.snapshot), self._lineage.lvols.hold(wanted.volume):
            if not desired.present:
                await drop_helper(self._rpc, wanted.bdev(wanted.helper))
                return
            await self._make(wanted)
        self._lineage.put_on(wanted.volume, wanted.snapshot)

    async def _make(self, wanted: DesiredSeed) -> None:
        failure: tuple[SeedAction, RpcError] | None = None
        for attempt in range(ATTEMPTS):
            rounds = await self._plan(wanted)
            if not rounds:
                return
            if failure is not None and failure[0] == rounds[0][0]:
                await asyncio.sleep(RETRY_DELAY_S * 2**attempt)
            failure = await self._apply(rounds)
            if failure is None:
                return
        if failure is not None and await self._plan(wanted):
            raise _refusal(wanted, *failure) from failure[1]

    async def _plan(self, wanted: DesiredSeed) -> tuple[tuple[SeedAction, ...], ...]:
        volume, snapshot, helper = await asyncio.gather(
            *(bdev.get(self._rpc, wanted.bdev(name)) for name in (wanted.volume, wanted.snapshot, wanted.helper))
        )
        seen = snapshot_seen(snapshot)
        if seen is None:
            raise FailedPrecondition(f"the data of snapshot {wanted.snapshot} are not in pool {wanted.pool}")
        part = volume.lvol if volume else None
        mine = VolumeSeen(volume.size_bytes, (part.base_snapshot or "") if part else "") if volume else None
        return seed(wanted, mine, seen, helper=helper is not None)

    async def _apply(self, rounds: tuple[tuple[SeedAction, ...], ...]) -> tuple[SeedAction, RpcError] | None:
        """The first refusal ends it and is returned."""
        for actions_of_round in rounds:
            results = await asyncio.gather(*(self._run(each) for each in actions_of_round), return_exceptions=True)
            for action, result in zip(actions_of_round, results, strict=True):
                if isinstance(result, RpcError):
                    return action, result
                if isinstance(result, BaseException):
                    raise result
        return None

    async def _run(self, action: SeedAction) -> None:
        match action:
            case CloneLvol(snapshot, name):
                await lvol.clone(self._rpc, snapshot, name)
            case SetParent(name, parent):
                await lvol.set_parent(self._rpc, name, parent)
            case _:
                await actions.run(self._rpc, action)


async def drop_helper(rpc: Rpc, name: str) -> None:
    """Delete a helper that a cut off attempt left; there is nothing in it. None there: fine."""
    try:
        await lvol.delete(rpc, name)
    except RpcError:
        if await bdev.get(rpc, name) is not None:
            raise


def snapshot_seen(found: bdev.BdevInfo | None) -> SnapshotSeen | None:
    """A snapshot's lvol as the target describes it."""
    if found is None or found.lvol is None:
        return None
    return SnapshotSeen(found.uuid, found.size_bytes, found.lvol.clones, found.lvol.snapshot)


def _refusal(wanted: DesiredSeed, action: SeedAction, error: RpcError) -> QuarryError:
    if isinstance(action, CreateLvol | ResizeLvol | CloneLvol):
        return pool_refusal(wanted.pool, f"volume {wanted.volume}", error)
    return error
