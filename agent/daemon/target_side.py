"""The side of a machine that has a target: its disks, pools and volumes, the same for every role that has one."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from agent.config.settings import Settings
from agent.daemon.lifecycle import end, ledger, make_private
from agent.daemon.signals import stop_event
from agent.diag import activity as target_activity
from agent.diag import volume_io
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
from agent.pools import access, write_caches
from agent.pools.disk_driver import DiskDrivers
from agent.pools.disk_keeper import DiskKeeper
from agent.pools.disk_records import DiskRecords
from agent.pools.file_disk import FileAccess
from agent.pools.file_disks import FileDiskKeeper, FileDiskRecords
from agent.pools.health_keeper import HealthKeeper, ways_to_ask
from agent.pools.io_errors import IoErrors
from agent.pools.kernel_disk import KernelAccess
from agent.pools.ledger import Ledger
from agent.pools.lost_disks import LostDisks
from agent.pools.metadata_pages import MetadataPages
from agent.pools.pools import Pools
from agent.pools.safeguards import Safeguards
from agent.pools.userspace_disk import Recovery, UserspaceAccess
from agent.pools.write_cache_keeper import WriteCacheKeeper
from agent.pools.write_caches import WriteCaches
from agent.pools.zeroing import Zeroing
from agent.spdk import bdev
from agent.spdk.client import Client
from agent.spdk.supervision import EmbeddedTarget
from agent.store.interface import Store
from agent.tasks.background import Background, noticed
from agent.tasks.guard import VolumeGuard
from agent.tasks.operations import Operations
from agent.volumes.attach.frontends import FrontendDriver, LoopFrontend, NvmeTcpFrontend
from agent.volumes.attach.node import NodeVolumes
from agent.volumes.attach.stillness import Stillness
from agent.volumes.attach.ublk import UblkFrontend
from agent.volumes.keepers.lost_data import LostData
from agent.volumes.keepers.port_keeper import PortKeeper
from agent.volumes.keepers.subsystem_limit import SubsystemLimit
from agent.volumes.rules.plan import Listener
from agent.volumes.service.lineage import Lineage
from agent.volumes.target.bringup import TargetKeeper, step
from agent.volumes.target.reconcile import Place, Reconciler
from agent.volumes.target.snapshot_reconcile import SnapshotReconciler

log = logging.getLogger(__name__)


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

    def target_parts(self) -> dict[str, Any]:
        """What `agent.diag.parts.Parts` has of the target."""

        async def activity() -> Mapping[str, Any]:
            nature = self.keeper.nature
            return await target_activity.told(self.rpc, nature) if nature is not None else {}

        read_io = functools.partial(volume_io.read, self.rpc)
        return {"rpc": self.rpc, "keeper": self.keeper, "read_io": read_io, "activity": activity}

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
        pages = MetadataPages(self.rpc, records, pools, book)
        self.keeper.run(self._port, limit, pages)
        self.keeper.before_volumes(step(self._port.brought_up), step(limit.brought_up), step(pages.brought_up))
        file_disks = FileDiskKeeper(
            records,
            self._file_disks(records),
            pools,
            lambda: self.keeper.state is TargetState.READY,
            self.keeper.audit_soon,
        )
        self.keeper.run(file_disks)
        self.keeper.after_volumes(step(file_disks.audited))
        if follower is not None:
            self._keep_disks(store, records, follower, pools)
            self.keeper.run(WriteCacheKeeper(records, pools, caches))
        keeper = self.keeper
        lost_data = LostData(store, pools, lost, keeper.settle_soon, lineage.stir, keeper.audit_soon)
        keeper.run(lost_data)
        keeper.after_volumes(step(lost_data.audited))
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
        errors = IoErrors(self.rpc, records, pools, disks.is_ready)
        self.keeper.run(disks, errors, health)
        self.keeper.before_volumes(step(errors.brought_up))
        self.keeper.after_volumes(step(disks.audited))

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
