"""The side of a machine that has a target: its disks, pools and volumes, the same for every role that has one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from agent.config import PoolSettings, Settings
from agent.daemon.signals import stop_event
from agent.diag.parts import Reason
from agent.disks.binder import FOLDER, Binder, away
from agent.disks.candidates import Candidates
from agent.disks.eligibility import Policy
from agent.disks.inventory import Inventory
from agent.disks.machine import Machine
from agent.disks.watch import Watch
from agent.errors import FailedPrecondition
from agent.host import locks, room
from agent.model import Frontend, StorageNode, TargetState
from agent.spdk import bdev
from agent.spdk.client import Client
from agent.spdk.supervision import EmbeddedTarget
from agent.store.interface import Store
from agent.tasks.background import Background, noticed
from agent.volumes import access, write_caches
from agent.volumes.bringup import TargetKeeper
from agent.volumes.disk_driver import DiskDrivers
from agent.volumes.disk_keeper import DiskKeeper
from agent.volumes.disk_records import DiskRecords
from agent.volumes.file_disk import FileAccess
from agent.volumes.file_disks import FileDiskKeeper, FileDiskRecords
from agent.volumes.frontends import FrontendDriver, LoopFrontend, NvmeTcpFrontend
from agent.volumes.guard import VolumeGuard
from agent.volumes.health_keeper import HealthKeeper, ways_to_ask
from agent.volumes.io_errors import IoErrors
from agent.volumes.kernel_disk import KernelAccess
from agent.volumes.lineage import Lineage
from agent.volumes.lost_data import LostData
from agent.volumes.lost_disks import LostDisks
from agent.volumes.metadata_pages import MetadataPages
from agent.volumes.node import NodeVolumes
from agent.volumes.operations import Operations
from agent.volumes.placement import Ledger
from agent.volumes.plan import Listener
from agent.volumes.pools import Pools
from agent.volumes.port_keeper import PortKeeper
from agent.volumes.reconcile import Place, Reconciler
from agent.volumes.safeguards import Safeguards
from agent.volumes.snapshot_reconcile import SnapshotReconciler
from agent.volumes.space import Thresholds
from agent.volumes.stillness import Stillness
from agent.volumes.subsystem_limit import SubsystemLimit
from agent.volumes.ublk import UblkFrontend
from agent.volumes.userspace_disk import Recovery, UserspaceAccess
from agent.volumes.write_cache_keeper import WriteCacheKeeper
from agent.volumes.write_caches import WriteCaches
from agent.volumes.zeroing import Zeroing

log = logging.getLogger(__name__)

STOP_GRACE_S = 10.0
"""How long calls in flight may take to end at shutdown."""


class TargetSide:
    """Starts and stops the parts in order; what they are besides the target's is the role's to say."""

    rpc: Client
    keeper: TargetKeeper
    node: NodeVolumes

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._closers = contextlib.AsyncExitStack()
        self._background = Background()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start everything; returns when CSI answers, which may be before the target is ready.

        Raises FailedPrecondition when another agent runs on the state folder, InvalidArgument for disks that cannot be.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        raise NotImplementedError

    async def _local_path(self, volume: str) -> Path | None:
        """The file behind a volume on the embedded target, None on a real one."""
        raise NotImplementedError

    def health(self) -> TargetState:
        """Ready while the target serves hosts and what is asked for can be recorded (`agent.csi.ports.Prober`)."""
        state = self.keeper.state
        return TargetState.STARTING if state is TargetState.READY and self.troubles() else state

    def troubles(self) -> list[Reason]:
        """What keeps a node whose target serves from doing its work."""
        found = {"state": self._recording_trouble(), "port": self._port.trouble}
        return [Reason(part, trouble) for part, trouble in found.items() if trouble]

    def _recording_trouble(self) -> str:
        """Why nothing can be recorded in the state folder, with the remedy; empty when it can."""
        return room.lacking(self.settings.state_dir)

    def _hold_folder(self) -> None:
        """Keep other agents off the state folder."""
        make_private(self.settings.state_dir)
        self._closers.callback(os.close, _lock(self.settings.state_dir))

    async def _build_target_side(self, store: Store) -> Core:
        """Everything between the target and the store."""
        settings = self.settings
        self.rpc = Client(
            await self._target_socket(),
            call_timeout_s=settings.rpc.call_timeout_s,
            reconnect_min_s=settings.rpc.reconnect_min_s,
            reconnect_max_s=settings.rpc.reconnect_max_s,
        )
        self._closers.push_async_callback(self.rpc.close)
        book, guard = ledger(settings.pool), VolumeGuard()
        listener = Listener(settings.nvmf_address, settings.nvmf_port)
        lineage, operations = Lineage(), Operations(guard)
        records = DiskRecords(store, settings.node_name)
        zeroing = Zeroing(self.rpc, records, settings.pool.deletions_linger_s)
        self._closers.push_async_callback(zeroing.stop)
        ways, follower = self._ways_to_disks(records)
        lost = LostDisks(store, lambda name: follower.has(name) if follower is not None else False)
        place = Place(settings.node_name, listener)
        reconciler = Reconciler(self.rpc, store, book, place, lineage, zeroing, lost)
        caches = WriteCaches(records, write_caches.ways(self.rpc), settings.disks)
        pools = Pools(self.rpc, records, book, settings.zone, settings.pool, ways, Safeguards(caches, zeroing))
        self.keeper = TargetKeeper(self.rpc, store, settings, pools, book, reconciler, guard)
        self._port = PortKeeper(self.rpc, listener)
        limit = SubsystemLimit(self.rpc, records, pools, lambda: reconciler.observed)
        self.keeper.companions += [self._port, limit, MetadataPages(self.rpc, records, pools, book)]
        file_disks = FileDiskKeeper(
            records,
            self._file_disks(records),
            pools,
            lambda: self.keeper.state is TargetState.READY,
            self.keeper.audit_soon,
        )
        self.keeper.companions.append(file_disks)
        if follower is not None:
            self._keep_disks(store, records, follower, pools)
            self.keeper.companions.append(WriteCacheKeeper(records, pools, caches))
        keeper = self.keeper
        keeper.companions.append(LostData(store, pools, lost, keeper.settle_soon, lineage.stir, keeper.audit_soon))
        cutter = SnapshotReconciler(self.rpc, store, book, reconciler, lineage, zeroing, lost)
        return Core(store, book, lineage, operations, reconciler, cutter, records)

    def _stillness(self, frontends: dict[Frontend, FrontendDriver]) -> Stillness:
        settings = self.settings
        return Stillness(
            self.rpc,
            Listener(settings.nvmf_address, settings.nvmf_port),
            lambda volume: self.node.frozen(volume),
            frontends,
            self._local_path,
            settings.snapshot.freeze_timeout_s,
        )

    async def stop(self) -> None:
        """Stop serving, let operations end, close everything. Volumes in use stay mounted."""
        await self._closers.aclose()

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when the target serves every volume. Raises Unavailable after `timeout_s`."""
        await self.keeper.wait_ready(timeout_s)

    async def run_until_signal(self) -> None:
        """Run until SIGTERM or SIGINT."""
        stopping = stop_event()
        async with self:
            await stopping.wait()
            log.info("stopping")

    def _ways_to_disks(self, records: DiskRecords) -> tuple[dict[str, access.DiskAccess], _Disks | None]:
        """How disks are reached, and what follows those of the machine (None: they cannot be found)."""
        settings, ways = self.settings, {access.FILE: FileAccess(self.rpc)}
        embedded = settings.spdk_socket is None
        try:
            source = Candidates(Machine(), loop_devices=settings.disks.loop_devices)
        except FailedPrecondition as error:
            log.warning("the disks of this machine are not looked at: %s", error)
            return dict(ways), None
        policy = Policy(loop_devices=settings.disks.loop_devices)
        watch = Watch(source, Inventory(source, records.node, policy))
        binder = Binder(settings.state_dir / FOLDER, watch.inventory)
        watch.inventory.away = lambda: away(binder.bindings())
        recovery = Recovery(binder, watch.discovered)
        bringing = asyncio.create_task(recovery.run(), name="bindings")
        noticed("bindings", bringing)  # not begun again: from its end on disks are in use
        self._closers.push_async_callback(end, bringing)
        kernel = KernelAccess(self.rpc, watch, embedded=embedded)
        userspace = UserspaceAccess(self.rpc, binder, recovery.done, embedded=embedded)
        self._closers.callback(kernel.close)
        drivers = DiskDrivers(binder, records, embedded=embedded)
        return {**ways, access.KERNEL: kernel, access.USERSPACE: userspace}, _Disks(watch, recovery, drivers)

    def _keep_disks(self, store: Store, records: DiskRecords, found: _Disks, pools: Pools) -> None:
        disks = DiskKeeper(store, records, found.watch, pools, found.drivers, self.settings.disks)
        disks.prepared = found.recovery.done
        disks.is_ready = lambda: self.keeper.state is TargetState.READY
        disks.audit_soon = self.keeper.audit_soon
        health = HealthKeeper(records, pools, ways_to_ask(self.rpc), self.settings.disks.health_interval_s)
        self.keeper.companions += [disks, IoErrors(self.rpc, records, pools, disks.is_ready), health]

    @property
    def _notes(self) -> Path:
        return self.settings.state_dir / "node"

    def _frontends(self, node: StorageNode, reconciler: Reconciler) -> dict[Frontend, FrontendDriver]:
        served_here = UblkFrontend(self.rpc, self.settings.node_name, self._notes / "ublk")
        reconciler.is_served, served_here.on_served = served_here.is_served, self.keeper.settle_soon
        return {
            Frontend.NVME_TCP: NvmeTcpFrontend(node.status.host_nqn),
            Frontend.UBLK: served_here,
            Frontend.LOOP: LoopFrontend(self._local_path, self._notes / "loop", self.keeper.look_at_space),
        }

    async def _target_socket(self) -> Path:
        """The socket of the target: the given one, or that of an embedded target started here."""
        settings = self.settings
        if settings.spdk_socket is not None:
            return settings.spdk_socket
        socket = settings.state_dir / "target.sock"
        target = EmbeddedTarget(socket, settings.state_dir / "target", nvmf_address=settings.nvmf_address)
        self._closers.push_async_callback(target.stop)
        await target.start()
        return socket

    async def _local_file(self, name: str) -> Path | None:
        found = await bdev.get(self.rpc, name)
        part = found.driver_specific.embedded if found else None
        return Path(part.file) if part else None

    def _file_disks(self, records: DiskRecords) -> FileDiskRecords:
        return FileDiskRecords(records, self.settings.file_disks)

    async def _register_disks(self, store: Store) -> None:
        await self._file_disks(DiskRecords(store, self.settings.node_name)).register()


class Core(NamedTuple):
    """What the parts of a role are made of."""

    store: Store
    ledger: Ledger
    lineage: Lineage
    operations: Operations
    reconciler: Reconciler
    cutter: SnapshotReconciler
    records: DiskRecords


class _Disks(NamedTuple):
    """What follows the disks of the machine, and what brings them to their drivers: after a crash, and as wanted."""

    watch: Watch
    recovery: Recovery
    drivers: DiskDrivers

    def has(self, disk: str) -> bool | None:
        """Whether the machine has the disk of that identity; None while that is not known."""
        return bool(self.watch.inventory.find(disk)) if self.watch.discovered.is_set() else None


async def end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def ledger(pool: PoolSettings) -> Ledger:
    return Ledger(pool.overprovision_ratio, Thresholds(pool.warning_percent / 100, pool.reserve_percent / 100))


def make_private(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise FailedPrecondition(
            f"state folder {folder} cannot be made: {error.strerror}; check --state-dir"
        ) from error


def _lock(path: Path) -> int:
    """Hold `path` locked as long as this process lives. Raises FailedPrecondition when another holds it."""
    try:
        descriptor = locks.hold(path)
    except OSError as error:
        raise FailedPrecondition(
            f"state folder {path.parent} cannot be used: {path.name}: {error.strerror}; check --state-dir"
        ) from error
    if descriptor is None:
        raise FailedPrecondition(f"another agent runs on {path}; stop it or give another --state-dir")
    return descriptor
