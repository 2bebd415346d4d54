"""Closing the difference between desired and observed on one node's target, one volume at a time.

`settle` is the one way a volume changes on the target: the service calls it in the request, the loop calls it for
every volume after a (re)connection and for those that failed. The caller holds the volume's guard.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import NamedTuple

from agent.errors import DiskAway, ResourceExhausted, RpcError, Unavailable
from agent.model import POOL_PREFIX, Endpoint, Frontend, Provisioning, ReplicaStatus, Volume, VolumePhase, VolumeStatus
from agent.pools.disk_conditions import IF_LOST
from agent.pools.ledger import Ledger
from agent.pools.lost_disks import LostDisks, failed
from agent.pools.zeroing import Zeroing
from agent.spdk import lvol, nvmf
from agent.spdk.client import Rpc
from agent.store.interface import Store
from agent.volumes.rules.names import serial_number, volume_nqn
from agent.volumes.rules.plan import (
    NOTHING,
    Action,
    CreateLvol,
    DeleteLvol,
    DesiredReplica,
    Listener,
    ResizeLvol,
    Round,
    is_lost,
    plan,
    shut_out,
)
from agent.volumes.service.lineage import Lineage, is_made
from agent.volumes.target import actions
from agent.volumes.target.observed import Observed, read_one
from agent.volumes.target.refusals import no_answer, refusal
from agent.volumes.target.seeding import Seeder

log = logging.getLogger(__name__)

ATTEMPTS = 5
"""How often a volume is re-read and re-planned in one call before the target's refusal is passed on."""

RETRY_DELAY_S = 0.02
"""First pause before re-planning after a refusal that the state does not explain (-11 while a change settles)."""


class Place(NamedTuple):
    """Which node this is, and where hosts connect to its target."""

    node: str
    listener: Listener


class Reconciler:
    """Settles volumes against the target that `connection` describes.

    `observed` is replaced as a whole at each new connection; until it is filled, `settle` waits for it up to
    `ready_timeout_s`, then raises Unavailable.
    """

    def __init__(
        self,
        rpc: Rpc,
        store: Store,
        ledger: Ledger,
        place: Place,
        lineage: Lineage,
        zeroing: Zeroing,
        lost: LostDisks,
    ) -> None:
        self._rpc = rpc
        self._store = store
        self._ledger = ledger
        self.node = place.node
        self._listener = place.listener
        self._observed: Observed | None = None
        self._filled = asyncio.Event()
        self.ready_timeout_s = 5.0
        self.is_served: Callable[[str], bool] = lambda volume: False
        """Whether a volume that is not exported has a device on this machine, which holds its bdev open."""
        self.forget: Callable[[Volume], Awaitable[None]] = self._delete
        """Called when the data of a deleted volume are gone."""
        self._lineage = lineage
        self._zeroing = zeroing
        self._lost = lost
        self._seeder = Seeder(rpc, self._lineage)

    @property
    def observed(self) -> Observed | None:
        return self._observed

    def reset(self, observed: Observed | None) -> None:
        """Take `observed` as the truth about the target; None: nothing is known (connection lost)."""
        self._observed = observed
        if observed is None:
            self._filled.clear()
        else:
            self._filled.set()

    def mark_unknown(self, volume: str) -> None:
        """Have the volume read before it is settled next."""
        if self._observed is not None:
            self._observed.mark_unknown(volume)

    def desired(self, volume: Volume) -> DesiredReplica | None:
        """What this node's replica should look like, None when no replica is here."""
        here = next((each for each in volume.spec.placement if each.node == self.node), None)
        if here is None:
            return None
        pool = self._ledger.pool(here.disk)
        known = next((each for each in volume.status.replicas if each.name == here.name), None)
        return DesiredReplica(
            volume=volume.meta.name,
            pool=POOL_PREFIX + here.disk,
            nqn=volume_nqn(volume.meta.name),
            serial=serial_number(volume.meta.name),
            present=not is_going(volume),
            size_bytes=pool.round_up(volume.spec.size_bytes) if pool else volume.spec.size_bytes,
            thin=volume.spec.provisioning is Provisioning.THIN,
            hosts=frozenset(each.host_nqn for each in volume.spec.attachments),
            listener=self._listener,
            qos=volume.spec.qos,
            exported=volume.spec.frontend is not Frontend.UBLK,
            opened=volume.spec.frontend is Frontend.UBLK and self.is_served(volume.meta.name),
            lvol_uuid=known.lvol_uuid if known else "",
        )

    async def settle(self, volume: Volume) -> Volume | None:
        """Make the target agree with `volume` and record it; None when the volume was deleted and is gone.

        A volume whose data are not there, or whose disk is lost, is closed and recorded as Failed, never made anew.
        Raises ResourceExhausted when the pool refuses, Unavailable when the target is away, DiskAway when its disk
        is, RpcError otherwise.
        """
        desired = self.desired(volume)
        if desired is None:
            return volume
        await self.ready()
        disk = desired.pool.removeprefix(POOL_PREFIX)
        if self._ledger.pool(disk) is None:
            return await self._settle_without_disk(volume, desired, disk)
        if volume.spec.source is not None and not desired.lvol_uuid:
            await self._seeder.settle(volume.spec.source, desired)
            await self.refresh(desired)
        await self._converge(desired)
        if is_going(volume):
            await self._finish(volume)
            return None
        return await self._record(volume, self._status(volume, desired))

    async def _settle_without_disk(self, volume: Volume, desired: DesiredReplica, disk: str) -> Volume | None:
        """Nobody has a door to data that are away. What is lost with its disk can go, and is called failed."""
        why = await self._lost.why(disk)
        await self._shut_out(replace(desired, hosts=frozenset()) if why else desired)
        if not why:
            raise DiskAway(
                f"disk {disk} of volume {desired.volume} is not ready; repeat the call when it is, or "
                + IF_LOST.format(disk)
            )
        if is_going(volume):
            # Its export, and nothing else: what has the name of its pool now holds data of somebody else.
            await nvmf.ensure_no_subsystem(self._rpc, desired.nqn)
            await self._finish(volume)
            return None
        if not is_made(volume) and not volume.spec.attachments:
            raise ResourceExhausted(f"volume {desired.volume} cannot be made where it was to lie: {why}")
        return await self._record(volume, failed(volume, why))

    async def _finish(self, volume: Volume) -> None:
        await self.forget(volume)
        self._ledger.release(volume.meta.name)
        self._lineage.gone(volume.meta.name)
        if volume.spec.source is not None:
            self._lineage.served(volume.meta.name, volume.spec.source.snapshot)

    async def _record(self, volume: Volume, status: VolumeStatus) -> Volume:
        if status == volume.status:
            return volume
        updated = await self._store.update(replace(volume, status=status))
        if volume.spec.source is not None:
            self._lineage.served(volume.meta.name, volume.spec.source.snapshot)
        return updated

    async def _delete(self, volume: Volume) -> None:
        await self._store.delete(Volume, volume.meta.name)

    def bdev_of(self, volume: Volume) -> str:
        """Name of its bdev on this node's target; empty: it is not here."""
        desired = self.desired(volume)
        return desired.bdev if desired else ""

    def holds_unrecorded(self, volume: str) -> bool:
        """Whether the target has data of that name: of a volume without a record they are somebody's."""
        return self._observed is not None and self._observed.get(volume).lvol is not None

    async def destroy(self, disk: str, name: str) -> None:
        """Delete data of ours that have no record, for who holds their guard. Raises RpcError for what has clones."""
        async with self._zeroing.deleting(disk), self._lineage.lvols.hold(name):
            await lvol.delete(self._rpc, f"{POOL_PREFIX}{disk}/{name}", timeout_s=actions.DELETE_TIMEOUT_S)
        if self._observed is not None:
            self._observed.set(name, NOTHING)
        self._lineage.gone(name)

    async def withdraw(self, volume: str) -> None:
        """Serve a volume no more that is recorded elsewhere, or nowhere. Its data, if they are here, stay."""
        if self._observed is None or self._observed.get(volume).subsystem is None:
            return  # a new connection serves what is placed here only
        log.warning("volume %s is not placed here any more: it is not served", volume)
        self._observed.mark_unknown(volume)
        await nvmf.ensure_no_subsystem(self._rpc, volume_nqn(volume))
        self._observed.set(volume, replace(self._observed.get(volume), subsystem=None))

    async def _shut_out(self, desired: DesiredReplica) -> None:
        """While its disk is away: cut hosts that may no longer reach it. They stay out when the disk is back."""
        observed = await self.ready()
        await self.refresh(desired)
        try:
            if closing := shut_out(desired, observed.get(desired.volume)):
                failure = await self._apply(observed, desired, (closing,))
                await self.refresh(desired)
                if failure is not None and shut_out(desired, observed.get(desired.volume)):
                    raise failure[1]
        finally:
            observed.mark_unknown(desired.volume)  # its data are away now, and may be there again at any moment

    async def refresh(self, desired: DesiredReplica) -> None:
        """Read one volume's state back from the target."""
        observed = await self.ready()
        observed.set(desired.volume, await read_one(self._rpc, desired))

    def _limits(self, desired: DesiredReplica) -> tuple[int, int]:
        """The largest volume of its kind that its pool could hold, and the size of the pool."""
        pool = self._ledger.pool(desired.pool.removeprefix(POOL_PREFIX))
        if pool is None:
            return desired.size_bytes, desired.size_bytes
        kind = Provisioning.THIN if desired.thin else Provisioning.THICK
        return self._ledger.ceiling(pool, kind), pool.size_bytes

    async def _converge(self, desired: DesiredReplica) -> None:
        refused: Action | None = None
        for attempt in range(ATTEMPTS):
            observed = await self.ready()
            if not observed.is_known(desired.volume):
                await self.refresh(desired)
            rounds = plan(desired, observed.get(desired.volume))
            failure = await self._apply(observed, desired, rounds)
            if failure is None:
                return
            action, error = failure
            # The code and text of a refusal differ per method: the state tells what really happened.
            await self.refresh(desired)
            if not any(action in each for each in plan(desired, observed.get(desired.volume))):
                continue  # it is done already, by an earlier life of this agent
            if attempt == ATTEMPTS - 1 or isinstance(action, CreateLvol | ResizeLvol):
                raise refusal(desired, action, error, *self._limits(desired)) from error
            if action == refused:
                await asyncio.sleep(RETRY_DELAY_S * 2**attempt)
            refused = action
        raise Unavailable(f"volume {desired.volume} is being changed by somebody else; repeat the call")

    async def _apply(
        self, observed: Observed, desired: DesiredReplica, rounds: tuple[Round, ...]
    ) -> tuple[Action, RpcError] | None:
        """Run the rounds; the first refusal ends them and is returned, everything that succeeded is recorded."""
        for actions_of_round in rounds:
            observed.mark_unknown(desired.volume)
            results = await self._run(desired, actions_of_round)
            for result in results:
                if isinstance(result, BaseException) and not isinstance(result, RpcError):
                    raise no_answer(desired, result)
            seen = observed.get(desired.volume)
            for action, result in zip(actions_of_round, results, strict=True):
                if isinstance(result, str):
                    seen = actions.applied(seen, action, result)
            observed.set(desired.volume, seen)
            for action, result in zip(actions_of_round, results, strict=True):
                if isinstance(result, RpcError):
                    return action, result
        return None

    async def _run(self, desired: DesiredReplica, actions_of_round: Round) -> list[str | BaseException]:
        if not any(isinstance(action, DeleteLvol | ResizeLvol) for action in actions_of_round):
            return await self._run_together(actions_of_round)
        async with self._lineage.lvols.hold(desired.volume):
            if not any(isinstance(action, DeleteLvol) for action in actions_of_round):
                return await self._run_together(actions_of_round)
            async with self._zeroing.deleting(desired.pool.removeprefix(POOL_PREFIX)) as deletion:
                results = await self._run_together(actions_of_round)
                if any(isinstance(result, BaseException) for result in results):
                    deletion.unsure = True
                return results

    async def _run_together(self, actions_of_round: Round) -> list[str | BaseException]:
        """Results or errors of the actions in order; their calls go out together.

        The first runs in this task: most rounds have one or two actions, and a task costs as much as a call.
        """
        first, *others = (actions.run(self._rpc, action) for action in actions_of_round)
        tasks = [asyncio.create_task(each) for each in others]
        results: list[str | BaseException] = []
        try:
            for each in (first, *tasks):
                try:
                    results.append(await each)
                except Exception as error:  # noqa: BLE001 - the caller decides, knowing all results
                    results.append(error)
        finally:
            for task in tasks:
                task.cancel()  # those that were not awaited: this task was cancelled
        return results

    async def ready(self) -> Observed:
        """What is known of the target, once it is; Unavailable when that takes longer than `ready_timeout_s`."""
        if self._observed is None:
            try:
                await asyncio.wait_for(self._filled.wait(), self.ready_timeout_s)
            except TimeoutError:
                raise Unavailable("the target is not ready; repeat the call") from None
        if self._observed is None:
            raise Unavailable("the target went away; repeat the call")
        return self._observed

    def _status(self, volume: Volume, desired: DesiredReplica) -> VolumeStatus:
        settled = self._judged(volume, desired)
        return volume.status if settled == volume.status else settled

    def _judged(self, volume: Volume, desired: DesiredReplica) -> VolumeStatus:
        observed = volume.meta.generation
        seen = self._observed.get(volume.meta.name) if self._observed else None
        here = seen.lvol if seen else None
        if seen is not None and is_lost(desired, seen):
            what = f"its data are lost: lvol {desired.lvol_uuid} is not in pool {desired.pool}"
            return replace(volume.status, phase=VolumePhase.FAILED, message=what, observed=observed, failure=None)
        if here is None:
            return replace(volume.status, observed=observed, failure=None)
        replica = ReplicaStatus(
            name=next(each.name for each in volume.spec.placement if each.node == self.node),
            ready=True,
            lvol_uuid=here.uuid,
            endpoint=Endpoint(desired.nqn, desired.listener.address, desired.listener.port)
            if desired.exported
            else None,
        )
        return replace(
            volume.status,
            phase=VolumePhase.READY,
            size_bytes=here.size_bytes,
            replicas=(replica,),
            message="",
            observed=observed,
            failure=None,
        )


def is_going(volume: Volume) -> bool:
    """Whether its data are to go: it is deleted, and nobody has it published."""
    return volume.meta.deleting and not volume.spec.attachments
