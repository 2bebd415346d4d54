"""The composition root: builds the parts for a role, starts them in order, stops them in the reverse order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
import uuid
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from agent.config import PoolSettings, Settings
from agent.csi.server import CsiServer, build_server
from agent.diag.endpoint import serve
from agent.diag.parts import Parts
from agent.disks import files
from agent.disks.binder import FOLDER, Binder, away
from agent.disks.candidates import Candidates
from agent.disks.eligibility import Policy
from agent.disks.inventory import Inventory
from agent.disks.machine import Machine
from agent.disks.watch import Watch
from agent.errors import FailedPrecondition
from agent.host import locks, ublk
from agent.model import Disk, DiskPhase, Frontend, Meta, StorageNode, StorageNodeStatus, TargetState
from agent.spdk import bdev
from agent.spdk.client import Client
from agent.spdk.supervision import EmbeddedTarget
from agent.store.local import LocalStore, open_local
from agent.volumes import access
from agent.volumes.adoption import Adoption
from agent.volumes.bringup import TargetKeeper
from agent.volumes.disk_keeper import DiskKeeper
from agent.volumes.disk_records import DiskRecords
from agent.volumes.frontends import FrontendDriver, LoopFrontend, NvmeTcpFrontend
from agent.volumes.group_keeper import GroupKeeper
from agent.volumes.groups import GroupService
from agent.volumes.guard import VolumeGuard
from agent.volumes.health_keeper import HealthKeeper, ways_to_ask
from agent.volumes.io_errors import IoErrors
from agent.volumes.kernel_disk import KernelAccess
from agent.volumes.lineage import Lineage
from agent.volumes.node import NodeVolumes
from agent.volumes.operations import Operations
from agent.volumes.placement import Ledger
from agent.volumes.plan import Listener
from agent.volumes.pools import Pools
from agent.volumes.reconcile import Reconciler
from agent.volumes.service import VolumeService
from agent.volumes.snapshot_keeper import SnapshotKeeper
from agent.volumes.snapshot_reconcile import SnapshotReconciler
from agent.volumes.snapshot_records import SnapshotRecords
from agent.volumes.snapshots import SnapshotService
from agent.volumes.sources import Sources
from agent.volumes.space import Thresholds
from agent.volumes.stillness import Stillness
from agent.volumes.ublk import UblkFrontend
from agent.volumes.userspace_disk import Recovery, UserspaceAccess

log = logging.getLogger(__name__)

STOP_GRACE_S = 10.0
"""How long calls in flight may take to end at shutdown."""


class Standalone:
    """Node and controller of one machine in one process, over the local store.

    `async with Standalone(settings) as node:` starts and stops it; `wait_ready` waits for the target.
    """

    rpc: Client
    volumes: VolumeService
    snapshots: SnapshotService
    groups: GroupService
    keeper: TargetKeeper
    node: NodeVolumes

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._closers = contextlib.AsyncExitStack()

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
        settings = self.settings
        _make_private(settings.state_dir)
        self._closers.callback(os.close, _lock(settings.state_dir / "agent.lock"))
        store = await open_local(settings.state_dir / "quarry.db")
        self._closers.push_async_callback(store.close)
        node = await self._register_node(store)
        await self._register_disks(store)
        self.rpc = Client(
            await self._target_socket(),
            call_timeout_s=settings.rpc.call_timeout_s,
            reconnect_min_s=settings.rpc.reconnect_min_s,
            reconnect_max_s=settings.rpc.reconnect_max_s,
        )
        self._closers.push_async_callback(self.rpc.close)
        ledger, guard = _ledger(settings.pool), VolumeGuard()
        listener = Listener(settings.nvmf_address, settings.nvmf_port)
        lineage, operations = Lineage(), Operations(guard)
        reconciler = Reconciler(self.rpc, store, ledger, settings.node_name, listener, lineage)
        records = DiskRecords(store, settings.node_name)
        ways, follower = self._ways_to_disks(records)
        pools = Pools(self.rpc, records, ledger, settings.zone, settings.pool, ways)
        self.keeper = TargetKeeper(self.rpc, store, settings, pools, ledger, reconciler, guard)
        if follower is not None:
            self._keep_disks(store, records, follower, pools)
        adoption = Adoption(self.rpc, store, records, ledger, reconciler, lineage, guard)
        adoption.settle_soon = self.keeper.settle_soon
        self.keeper.companions.append(adoption)
        frontends = self._frontends(node, reconciler)
        sources = self._snapshot_side(store, ledger, reconciler, lineage, operations, frontends)
        self.volumes = VolumeService(
            store, ledger, reconciler, operations, lambda: self.keeper.state, self._local_file, sources
        )
        self._closers.push_async_callback(operations.drain, STOP_GRACE_S)
        self._closers.push_async_callback(self.keeper.stop)
        self.node = NodeVolumes(
            settings.node_name, settings.mount_roots, frontends, self._notes, settings.snapshot.freeze_timeout_s
        )
        self.keeper.recover_device = self.node.recover
        await self.keeper.start()
        await self.rpc.start()
        server = build_server(self.volumes, self.snapshots, self.groups, self.node, node, settings.csi_endpoint)
        self._closers.push_async_callback(server.stop, STOP_GRACE_S)
        self._closers.push_async_callback(_end, asyncio.create_task(self.node.thaw_leftovers(), name="thaw"))
        await self._serve_http(store, server, ledger, lineage)
        await self.volumes.start()
        await self.node.release_leftovers(await self.volumes.list())
        await server.start()
        log.info("serving CSI on %s for node %s", settings.csi_endpoint, settings.node_name)

    async def _serve_http(self, store: LocalStore, server: CsiServer, ledger: Ledger, lineage: Lineage) -> None:
        """Health, metrics and resources (agent.diag)."""
        settings = self.settings
        endpoint = await serve(
            settings,
            Parts(
                role="standalone",
                node=settings.node_name,
                store=store,
                store_writes=store.writes,
                calls=server.calls,
                is_serving=lambda: server.is_serving,
                rpc=self.rpc,
                keeper=self.keeper,
                ledger=ledger,
                lineage=lineage,
                conditions=self.volumes.conditions,
            ),
        )
        if endpoint is not None:
            self._closers.push_async_callback(endpoint.stop)

    async def stop(self) -> None:
        """Stop serving, let operations end, close everything. Volumes in use stay mounted."""
        await self._closers.aclose()

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when the target serves every volume. Raises Unavailable after `timeout_s`."""
        await self.keeper.wait_ready(timeout_s)

    async def run_until_signal(self) -> None:
        """Run until SIGTERM or SIGINT."""
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, stopping.set)
        async with self:
            await stopping.wait()
            log.info("stopping")

    def _ways_to_disks(self, records: DiskRecords) -> tuple[dict[str, access.DiskAccess], _Disks | None]:
        """How disks are reached, and what follows those of the machine (None: they cannot be found)."""
        settings, ways = self.settings, {access.FILE: access.FileAccess(self.rpc)}
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
        self._closers.push_async_callback(_end, asyncio.create_task(recovery.run(), name="bindings"))
        kernel = KernelAccess(self.rpc, watch, embedded=embedded)
        userspace = UserspaceAccess(self.rpc, binder, recovery.done, embedded=embedded)
        self._closers.callback(kernel.close)
        return {**ways, access.KERNEL: kernel, access.USERSPACE: userspace}, _Disks(watch, recovery)

    def _keep_disks(self, store: LocalStore, records: DiskRecords, found: _Disks, pools: Pools) -> None:
        disks = DiskKeeper(store, records, found.watch, pools, self.settings.disks)
        disks.prepared = found.recovery.done
        disks.is_ready = lambda: self.keeper.state is TargetState.READY
        disks.audit_soon = self.keeper.audit_soon
        health = HealthKeeper(records, pools, ways_to_ask(self.rpc), self.settings.disks.health_interval_s)
        self.keeper.companions += [disks, IoErrors(self.rpc, records, pools, disks.is_ready), health]

    def _snapshot_side(
        self,
        store: LocalStore,
        ledger: Ledger,
        reconciler: Reconciler,
        lineage: Lineage,
        operations: Operations,
        frontends: dict[Frontend, FrontendDriver],
    ) -> Sources:
        """Snapshots and groups of them; returns what volumes are made of."""
        settings = self.settings
        still = Stillness(
            self.rpc,
            Listener(settings.nvmf_address, settings.nvmf_port),
            lambda volume: self.node.frozen(volume),
            frontends,
            lambda volume: self.volumes.local_path(volume),
            settings.snapshot.freeze_timeout_s,
        )
        cutter = SnapshotReconciler(self.rpc, store, ledger, reconciler, lineage)
        records = SnapshotRecords(store, ledger, lineage)
        self.snapshots = SnapshotService(store, records, cutter, lineage, operations, still.of)
        self.groups = GroupService(store, records, cutter, lineage, operations, still)
        self.keeper.companions += [
            GroupKeeper(store, self.groups),
            SnapshotKeeper(self.rpc, store, ledger, cutter, lineage, operations),
        ]
        return Sources(store, ledger, self.snapshots, records, lineage)

    @property
    def _notes(self) -> Path:
        return self.settings.state_dir / "node"

    def _frontends(self, node: StorageNode, reconciler: Reconciler) -> dict[Frontend, FrontendDriver]:
        served_here = UblkFrontend(self.rpc, self.settings.node_name, self._notes / "ublk")
        reconciler.is_served, served_here.on_served = served_here.is_served, self.keeper.settle_soon
        return {
            Frontend.NVME_TCP: NvmeTcpFrontend(node.status.host_nqn),
            Frontend.UBLK: served_here,
            Frontend.LOOP: LoopFrontend(lambda volume: self.volumes.local_path(volume), self._notes / "loop"),
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

    async def _register_node(self, store: LocalStore) -> StorageNode:
        """This node's resource. Its host NQN is made once and kept: it is what the fence knows the node by."""
        settings = self.settings
        known = await store.get(StorageNode, settings.node_name)
        others = [each.meta.name for each in await store.list(StorageNode) if each.meta.name != settings.node_name]
        if others:
            # Volumes and disks are recorded as this other node's: under a new name none of them would be served.
            raise FailedPrecondition(
                f"the state folder {settings.state_dir} is that of node {others[0]}, not of {settings.node_name}: "
                f"give --node-name {others[0]}, or another --state-dir"
            )
        host_nqn = known.status.host_nqn if known else f"nqn.2014-08.org.nvmexpress:uuid:{uuid.uuid4()}"
        status = StorageNodeStatus(
            addresses=(settings.nvmf_address,),
            zone=settings.zone,
            host_nqn=host_nqn,
            max_volumes=settings.max_volumes_per_node,
            frontends=tuple(each for each in Frontend if each is not Frontend.UBLK or ublk.is_available()),
            target_state=TargetState.UNKNOWN,
            last_heartbeat=time.time(),
        )
        if known is None:
            return await store.create(StorageNode(Meta(settings.node_name, created_at=time.time()), status=status))
        return await store.update(replace(known, status=status))

    async def _register_disks(self, store: LocalStore) -> None:
        """A Disk for every file disk. One that is gone stays known, as missing: volumes may be on it."""
        settings = self.settings
        present = set[str]()
        for file_disk in settings.file_disks:
            known = await store.get(Disk, files.disk_id(file_disk.path))
            if known is not None and known.status.pool.uuid and not file_disk.path.exists():
                # An empty file in its place would look like the disk, without the volumes.
                continue
            disk = await asyncio.to_thread(files.prepare, file_disk, settings.node_name)
            present.add(disk.meta.name)
            if known is None:
                await store.create(replace(disk, meta=replace(disk.meta, created_at=time.time())))
                continue
            # What was learned of the pool stays, as does the mark of a creation that was begun.
            kept = known.status.phase is DiskPhase.FORMATTING
            phase = DiskPhase.FORMATTING if kept else DiskPhase.AVAILABLE
            status = replace(disk.status, phase=phase, pool=known.status.pool)
            await store.update(replace(known, spec=disk.spec, status=status))
        for known in await store.list(Disk):
            if known.meta.name not in present and access.kind(known) == access.FILE:
                log.error("disk %s (%s) is missing or no longer configured", known.meta.name, known.status.path)
                status = replace(known.status, phase=DiskPhase.MISSING, message="the file is gone or not configured")
                await store.update(replace(known, spec=replace(known.spec, claimed=False), status=status))


class _Disks(NamedTuple):
    """What follows the disks of the machine, and what brings them to their drivers."""

    watch: Watch
    recovery: Recovery


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _ledger(pool: PoolSettings) -> Ledger:
    return Ledger(pool.overprovision_ratio, Thresholds(pool.warning_percent / 100, pool.reserve_percent / 100))


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise FailedPrecondition(
            f"state folder {folder} cannot be made: {error.strerror}; check --state-dir"
        ) from error


def _lock(path: Path) -> int:
    """Hold `path` locked as long as this process lives. Raises FailedPrecondition when another holds it."""
    descriptor = locks.hold(path)
    if descriptor is None:
        raise FailedPrecondition(f"another agent runs on {path.parent}; stop it or give another --state-dir")
    return descriptor
