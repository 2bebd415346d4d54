"""From a fresh connection to a target that serves everything it should, and keeping it so.

The target forgets transports, base bdevs and exports when it restarts. `TargetKeeper` notices (the connection was
lost or the process is another one), rebuilds all of it in pipelined batches, base bdevs first, says how long it
took, and from then on audits at intervals and retries the volumes that failed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from agent.config.settings import Settings
from agent.errors import Busy, Conflict, DiskAway, QuarryError, TransportClosed, Unavailable
from agent.model import Frontend, TargetState, Volume
from agent.pools.ledger import Ledger
from agent.pools.pools import Pools
from agent.spdk import app, nature, nvmf
from agent.spdk.client import Client
from agent.store.interface import Store
from agent.tasks.background import Background
from agent.tasks.failures import FAILURES
from agent.tasks.guard import VolumeGuard
from agent.tasks.work import Work
from agent.volumes.target.foreign import drop_foreign_exports, report_orphans
from agent.volumes.target.observed import Observed, read_all
from agent.volumes.target.reconcile import Reconciler

log = logging.getLogger(__name__)


class Companion(Protocol):
    """Something else than volumes that goes on as long as the target is kept."""

    async def start(self) -> None:
        """Before the first connection."""
        ...

    async def stop(self) -> None: ...


Step = Callable[[Observed], Awaitable[None]]
"""What is done with what a target was seen to have."""


def step(work: Callable[[], Awaitable[None]]) -> Step:
    """Work that does not look at what the target has."""
    return lambda observed: work()


@dataclass(frozen=True, slots=True)
class Recovery:
    """One bring-up: how many volumes were settled, how many could not be, and how long it took."""

    volumes: int
    failed: int
    seconds: float


class TargetKeeper:
    """Owns the connection's life: bring-up, audits, retries, heartbeat. `state` is what Probe reports."""

    def __init__(
        self,
        client: Client,
        store: Store,
        settings: Settings,
        pools: Pools,
        ledger: Ledger,
        reconciler: Reconciler,
        guard: VolumeGuard,
    ) -> None:
        self._client = client
        self._store = store
        self._settings = settings
        self._pools = pools
        self._ledger = ledger
        self._reconciler = reconciler
        self._guard = guard
        self._changed = asyncio.Event()
        self._ready = asyncio.Event()
        self._failed: set[str] = set()
        self._background = Background()
        self._settling = Work("settle", self._settle_now, retry_max_s=settings.reconcile.retry_max_s)
        self._serving = TargetState.UNKNOWN
        self._answers = True
        self._trouble = ""
        self._audit_is_due = False
        self._serves_recorded_only = False
        self._companions: list[Companion] = []
        self._before: list[Step] = []
        self._after: list[Step] = []
        self.nature: nature.Nature | None = None
        """What the target is that was brought up last."""
        self.last_recovery: Recovery | None = None
        self.recoveries = 0
        """Bring-ups so far: the first, and one for each target that came back or was connected to again."""
        self.recover_device: Callable[[Volume], Awaitable[None]] = _nothing
        """Called for volumes whose device on this machine a new target has to take over."""

    def run(self, *companions: Companion) -> None:
        """Start them before the first connection, stop them at the end."""
        self._companions += companions

    def before_volumes(self, *steps: Step) -> None:
        """Do this when a target was read; its volumes are settled next."""
        self._before += steps

    def after_volumes(self, *steps: Step) -> None:
        """Do this when the volumes of a new target are settled, or the target was read again."""
        self._after += steps

    async def start(self) -> None:
        """Count what is stored against the pools, then follow the connection in the background."""
        for volume in await self._store.list(Volume):
            for replica in volume.spec.placement:
                self._ledger.reserve(volume.meta.name, replica.disk, volume.spec.size_bytes, volume.spec.provisioning)
        for each in self._companions:
            await each.start()
        self._client.on_change(self._on_change)
        self._changed.set()
        self._background.keep("target-keeper", self._run)
        self._background.every("target-heartbeat", self._settings.rpc.heartbeat_interval_s, self._ask_for_life)
        self._background.every("target-space", self._settings.pool.refresh_interval_s, self.look_at_space)

    async def stop(self) -> None:
        ending = [self._background.stop(), self._settling.stop(), *(each.stop() for each in self._companions)]
        await asyncio.gather(*ending, return_exceptions=True)

    @property
    def state(self) -> TargetState:
        """Whether the target serves: a connected one that has stopped answering is unreachable."""
        return self._serving if self._answers else TargetState.UNREACHABLE

    @property
    def trouble(self) -> str:
        """Why the last attempt to bring the target up failed; empty after one that did not."""
        return self._trouble

    def settle_soon(self, volume: str) -> None:
        """Settle a volume in the background: something that its plan depends on has changed, and is not stored."""
        self._settling.stir(volume)

    def serve_recorded_only(self) -> None:
        """From now on audits end exports that no volume asks for too: records went while the target was serving."""
        self._serves_recorded_only = True
        self.audit_soon()

    def audit_soon(self) -> None:
        """Compare everything again: a pool came or went, and its volumes with it."""
        self._audit_is_due = True
        self._changed.set()

    async def _settle_now(self, volume: str) -> None:
        # A new connection settles everything.
        if self._reconciler.observed is not None and await self._settle_all([volume]):
            raise Unavailable("it could not be settled")

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when the target serves every volume. Raises Unavailable after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._ready.wait()
        except TimeoutError:
            cause = f": {self._trouble}" if self._trouble else ""
            raise Unavailable(f"the target is {self.state} after {timeout_s:g} s{cause}") from None

    def _on_change(self, connected: bool) -> None:
        if not connected:
            self._serving = TargetState.UNREACHABLE
            self._ready.clear()
            self._reconciler.reset(None)
        self._changed.set()

    async def _run(self) -> None:
        delay = self._settings.reconcile.retry_min_s
        while True:
            self._changed.clear()
            if not self._client.connected:
                await self._changed.wait()
                continue
            try:
                if self._serving is not TargetState.READY:
                    await self._bring_up()
                    self._trouble = ""
                    delay = self._settings.reconcile.retry_min_s
                await self._watch_over()
            except TransportClosed:
                continue  # the listener has reset everything; the loop waits for the next connection
            except Exception as error:  # the outermost loop: an error of ours must not stop the healing
                self._trouble = str(error) if isinstance(error, QuarryError) else f"a defect: {error!r}"
                if isinstance(error, QuarryError):
                    log.error("the target is not serving yet: %s; trying again in %.1f s", error, delay)
                else:
                    FAILURES.counts["target-keeper"] += 1
                    log.exception("bring-up failed; trying again in %.1f s", delay)
                await self._wait_for_change(delay)
                delay = min(delay * 2, self._settings.reconcile.retry_max_s)

    async def _ask_for_life(self) -> None:
        """Ask the target whether it is still there: a frozen one keeps its connection open."""
        try:
            await app.version(self._client, timeout_s=self._settings.rpc.heartbeat_interval_s)
        except TransportClosed:
            self._answers = True  # gone, which the connection itself tells
        except QuarryError as error:
            if self._answers:
                log.error("the target has stopped answering: %s", error)
            self._answers = False
        else:
            if not self._answers:
                log.info("the target answers again")
            self._answers = True

    async def look_at_space(self) -> None:
        """Thin volumes fill the pools without a call of ours. What cannot be read now is read the next time."""
        if self.state is not TargetState.READY:
            return
        try:
            await self._pools.refresh(record=False)
        except QuarryError as error:
            log.info("the space of the pools could not be read: %s", error)

    async def _wait_for_change(self, timeout_s: float) -> bool:
        """Whether the connection changed within `timeout_s`."""
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def _bring_up(self) -> None:
        started, generation = time.monotonic(), self._client.generation
        self._serving = TargetState.STARTING
        rpc = self._client
        await app.wait_init(rpc)
        self.nature = await nature.learn(rpc)
        if await nvmf.get_transport(rpc) is None:
            await nvmf.create_transport(rpc, masked_oncs=[nvmf.DATASET_MANAGEMENT])  # decision 0022
        disks = await self._pools.ensure_all()
        observed = await read_all(rpc, [disk.pool_name for disk in disks])
        if self._client.generation != generation:
            raise TransportClosed("another target answered while pools were being loaded")
        self._reconciler.reset(observed)
        volumes = await self._store.list(Volume)
        await drop_foreign_exports(rpc, observed, volumes)
        for before in self._before:
            await before(observed)
        failed = await self._settle_all(each.meta.name for each in volumes if not each.meta.deleting)
        if self._serving is not TargetState.STARTING:
            raise TransportClosed("the connection was lost while the target was being rebuilt")
        self._serving = TargetState.READY
        self._ready.set()
        seconds = time.monotonic() - started
        self.last_recovery = Recovery(len(volumes), len(failed), seconds)
        self.recoveries += 1
        # Deleting may take minutes (clusters are zeroed): it comes after everything that somebody waits for. So does
        # taking over a device that its former server may not have let go of yet.
        later = (each for each in volumes if each.meta.deleting or _has_device_to_recover(each))
        self._failed = failed | {each.meta.name for each in later}
        for after in self._after:
            await after(observed)
        report_orphans(observed, await self._store.list(Volume))
        log.info(
            "target ready: %d disks, %d volumes in %.3f s, %d failed", len(disks), len(volumes), seconds, len(failed)
        )

    async def _watch_over(self) -> None:
        """Retry what failed, with growing pauses, and audit at intervals, until the connection changes."""
        audit_at = time.monotonic() + (0 if self._audit_is_due else self._settings.reconcile.audit_interval_s)
        self._audit_is_due = False
        delay = self._settings.reconcile.retry_min_s
        while True:
            until_audit = max(0.0, audit_at - time.monotonic())
            if await self._wait_for_change(min(delay, until_audit) if self._failed else until_audit):
                return
            if self._failed:
                self._failed = await self._settle_all(tuple(self._failed))
                delay = min(delay * 2, self._settings.reconcile.retry_max_s) if self._failed else delay
            if time.monotonic() >= audit_at:
                await self.audit()
                audit_at = time.monotonic() + self._settings.reconcile.audit_interval_s

    async def audit(self) -> list[str]:
        """Compare the cache with the target and settle every volume that differs. Returns their ids."""
        observed = self._reconciler.observed
        if observed is None:
            return []
        disks = await self._pools.refresh()
        actual = await read_all(self._client, [disk.pool_name for disk in disks])
        names = {each.meta.name for each in await self._store.list(Volume)}
        different = [name for name in names if actual.get(name) != observed.get(name)]
        for name in different:
            # The listing is older than calls made meanwhile: each is read again under its guard before it is judged.
            observed.mark_unknown(name)
        self._failed |= await self._settle_all(different)
        if self._serves_recorded_only:
            await drop_foreign_exports(self._client, actual, await self._store.list(Volume))
        for after in self._after:
            await after(actual)
        return different

    async def _settle_all(self, names: Iterable[str]) -> set[str]:
        """Settle volumes, `reconcile.parallel` at a time; returns those that could not be."""
        slots = asyncio.Semaphore(self._settings.reconcile.parallel)
        failed: set[str] = set()

        async def settle_one(name: str) -> None:
            async with slots:
                if self._reconciler.observed is None:
                    failed.add(name)  # the connection is lost: each would wait for the next one, one after the other
                    return
                try:
                    async with self._guard.hold(name, wait_s=self._settings.rpc.call_timeout_s):
                        volume = await self._store.get(Volume, name)
                        if volume is None:
                            return
                        settled = await self._reconciler.settle(volume)
                        if settled is not None and self._serving is TargetState.READY:
                            await self.recover_device(settled)
                except DiskAway:
                    if volume is not None and volume.meta.deleting:
                        failed.add(name)  # of others, the audit after their disk came back does the rest
                except (Busy, Conflict) as error:
                    failed.add(name)
                    log.info("volume %s is in use by another operation: %s", name, error)
                except QuarryError as error:
                    failed.add(name)
                    log.warning("volume %s could not be settled: %s", name, error)
                except Exception:  # a defect that one volume meets must not keep all others from being served
                    failed.add(name)
                    FAILURES.counts["settle"] += 1
                    log.exception("volume %s could not be settled", name)

        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(settle_one(name))
        return failed


def _has_device_to_recover(volume: Volume) -> bool:
    return volume.spec.frontend is Frontend.UBLK and bool(volume.spec.attachments)


async def _nothing(volume: Volume) -> None:
    pass
