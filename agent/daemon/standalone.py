"""`quarry standalone`: node and controller of one machine in one process, over the local store."""

from __future__ import annotations

import logging
from pathlib import Path

from agent.csi.server import CsiServer, build_server
from agent.daemon.lifecycle import STOP_GRACE_S
from agent.daemon.registration import Registration, TargetRecord, register
from agent.daemon.target_side import Core, TargetSide
from agent.diag.endpoint import serve
from agent.diag.parts import Parts
from agent.errors import FailedPrecondition, Unavailable
from agent.model import Frontend, StorageNode, TargetState
from agent.pools.ledger import Ledger
from agent.store.local import LocalStore, open_local
from agent.volumes.attach.frontends import FrontendDriver
from agent.volumes.attach.node import NodeVolumes
from agent.volumes.keepers.group_keeper import GroupKeeper
from agent.volumes.keepers.snapshot_keeper import SnapshotKeeper
from agent.volumes.keepers.unrecorded import UnrecordedKeeper
from agent.volumes.service.groups import GroupService
from agent.volumes.service.host_names import put_right
from agent.volumes.service.lineage import Lineage
from agent.volumes.service.service import VolumeService
from agent.volumes.service.snapshot_records import SnapshotRecords
from agent.volumes.service.snapshots import SnapshotService
from agent.volumes.service.sources import Sources
from agent.volumes.target.adoption import Adoption
from agent.volumes.target.bringup import step

log = logging.getLogger(__name__)


class Standalone(TargetSide):
    """Node and controller of one machine in one process, over the local store.

    `async with Standalone(settings) as node:` starts and stops it; `wait_ready` waits for the target.
    """

    _store: LocalStore
    volumes: VolumeService
    snapshots: SnapshotService
    groups: GroupService

    async def _start(self) -> None:
        settings = self.settings
        self._hold_folder()
        store = await open_local(settings.state_dir / "quarry.db")
        self._closers.push_async_callback(store.close)
        self._store = store
        registration = await self._registered(store)
        node = await self._recorded(registration, store)
        await self._register_disks(store)
        core = await self._build_target_side(store)
        lineage, operations, reconciler = core.lineage, core.operations, core.reconciler
        adoption = Adoption(self.rpc, store, core.records, core.ledger, reconciler, lineage, operations.guard)
        adoption.settle_soon = self.keeper.settle_soon
        guard, audit_soon = operations.guard, self.keeper.audit_soon
        unrecorded = UnrecordedKeeper(
            self.rpc, store, core.records, guard, adoption.adopt, audit_soon, reconciler.destroy
        )
        target_record = TargetRecord(registration, self.keeper)
        self.keeper.run(unrecorded)
        for when in (self.keeper.before_volumes, self.keeper.after_volumes):
            when(adoption.look, unrecorded.look, step(target_record.record))
        frontends = self._frontends(node, reconciler)
        sources = self._snapshot_side(core, frontends)
        self.volumes = VolumeService(
            store, core.ledger, reconciler, operations, lambda: self.keeper.state, self._local_file, sources
        )
        self._closers.push_async_callback(operations.drain, STOP_GRACE_S)
        self._closers.push_async_callback(self.keeper.stop)
        self.node = NodeVolumes(
            settings.node_name, settings.mount_roots, frontends, self._notes, settings.snapshot.freeze_timeout_s
        )
        self.keeper.recover_device = self.node.recover
        await self.keeper.start()
        await self.rpc.start()
        server = build_server(self, self.volumes, self.snapshots, self.groups, self.node, node, settings.csi_endpoint)
        self._closers.push_async_callback(server.stop, STOP_GRACE_S)
        self._background.once("thaw", self.node.thaw_leftovers)
        self._closers.push_async_callback(self.node.stop)
        self._closers.push_async_callback(self._background.stop)
        await self._serve_http(store, server, core.ledger, lineage)
        await self.volumes.start()
        await self.node.release_leftovers(await self.volumes.list())
        await server.start()
        log.info("serving CSI on %s for node %s", settings.csi_endpoint, settings.node_name)

    async def _local_path(self, volume: str) -> Path | None:
        return await self.volumes.local_path(volume)

    def _recording_trouble(self) -> str:
        return self._store.trouble or super()._recording_trouble()

    def _snapshot_side(self, core: Core, frontends: dict[Frontend, FrontendDriver]) -> Sources:
        """Snapshots and groups of them; returns what volumes are made of."""
        store, book, lineage, operations, cutter = core.store, core.ledger, core.lineage, core.operations, core.cutter
        still = self._stillness(frontends)
        records = SnapshotRecords(store, book, lineage)
        self.snapshots = SnapshotService(store, records, cutter, lineage, operations, still.of)
        self.groups = GroupService(store, records, cutter, lineage, operations, still)
        groups = GroupKeeper(store, self.groups)
        snapshots = SnapshotKeeper(self.rpc, store, book, cutter, lineage, operations)
        self.keeper.run(groups, snapshots)
        self.keeper.before_volumes(step(groups.brought_up), snapshots.brought_up)
        self.keeper.after_volumes(step(groups.audited), snapshots.audited)
        return Sources(store, book, self.snapshots, records, lineage)

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
                **self.target_parts(),
                ledger=ledger,
                lineage=lineage,
                conditions=self.volumes.conditions,
                more_reasons=self.troubles,
            ),
        )
        if endpoint is not None:
            self._closers.push_async_callback(endpoint.stop)

    async def _registered(self, store: LocalStore) -> Registration:
        settings = self.settings
        others = [each.meta.name for each in await store.list(StorageNode) if each.meta.name != settings.node_name]
        if others:
            # Volumes and disks are recorded as this other node's: under a new name none of them would be served.
            raise FailedPrecondition(
                f"the state folder {settings.state_dir} is that of node {others[0]}, not of {settings.node_name}: "
                f"give --node-name {others[0]}, or another --state-dir"
            )
        return await register(store, settings)

    async def _recorded(self, registration: Registration, store: LocalStore) -> StorageNode:
        """This node's resource. Its host NQN is made once and kept: it is what the fence knows the node by."""
        settings = self.settings
        known = await store.get(StorageNode, settings.node_name)
        try:
            recorded = await registration.record(TargetState.UNKNOWN, None)
        except Unavailable as error:
            if known is None:
                raise
            # A start is not to fail for a filesystem that is full.
            log.error("node %s stays as it is on record: %s", settings.node_name, error)
            recorded = known
        await put_right(store, {settings.node_name: registration.host_nqn})
        return recorded
