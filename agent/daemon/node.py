"""`quarry node`: the agent of one node of a cluster. It settles what is placed here and attaches what is used here."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from agent.config.settings import Settings
from agent.csi.server import CsiServer, build_node_server
from agent.daemon.cluster import HEARTBEAT, HEARTBEAT_S, RENEW_S, events_of, lease_namespace
from agent.daemon.lifecycle import STOP_GRACE_S, end
from agent.daemon.registration import own_id, register
from agent.daemon.signals import either, stop_event
from agent.daemon.target_side import Core, TargetSide
from agent.diag.endpoint import serve
from agent.diag.parts import Parts
from agent.errors import FailedPrecondition
from agent.model import StorageNode, TargetState, Volume
from agent.store.following import Changes
from agent.store.interface import Store
from agent.store.kubernetes.leases import Holder, Leases, lease_name, node_labels
from agent.store.kubernetes.store import KubernetesStore, open_kubernetes
from agent.volumes.attach.node import NodeVolumes
from agent.volumes.attach.node_view import NodeView
from agent.volumes.keepers.snapshot_keeper import SnapshotKeeper
from agent.volumes.keepers.unrecorded import UnrecordedKeeper
from agent.volumes.service.telling import TellingStore
from agent.volumes.target.placed_here import PlacedHere
from agent.volumes.target.settling_here import SettlingHere

log = logging.getLogger(__name__)

_ZONE_LABEL = "topology.kubernetes.io/zone"
_TOLD_EVERY_S = 1.0


class NodeAgent(TargetSide):
    """The agent of `settings.node_name`; a second one with that name is refused."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._core: Core | None = None

    async def run_until_signal(self) -> None:
        """Run until SIGTERM or SIGINT. Raises FailedPrecondition when another agent has this node's name."""
        stopping = stop_event()
        async with self:
            await either(stopping, asyncio.create_task(self._lose_heartbeat(), name="heartbeat-lost"))
            log.info("stopping")

    async def _start(self) -> None:
        self._hold_folder()
        cluster = await open_kubernetes(self.settings.kubeconfig)
        self._closers.push_async_callback(cluster.close)
        await self._hold_name(Leases(cluster.connection, lease_namespace(self.settings)))
        store = TellingStore(cluster, events_of(cluster, "node", self.settings.node_name, self._closers))
        if not self.settings.zone:
            labels = await node_labels(cluster.connection, self.settings.node_name)
            self.settings = self.settings.model_copy(update={"zone": labels.get(_ZONE_LABEL, "")})
        here = PlacedHere(store, self.settings.node_name)
        self._registration = await register(store, self.settings)
        this = await self._registration.record(TargetState.STARTING, None)
        await self._register_disks(here)
        core = self._core = await self._build_target_side(here)
        server = self._build_services(store, core, this)
        settling = self._build_settling(here, core)
        await self.keeper.start()
        await self.rpc.start()
        settling.start()
        self._closers.push_async_callback(settling.stop)
        self._background.every("node-record", _TOLD_EVERY_S, self._tell_of_itself)
        self._background.once("thaw", self.node.thaw_leftovers)
        self._closers.push_async_callback(self.node.stop)
        self._closers.push_async_callback(self._background.stop)
        self._closers.push_async_callback(server.stop, STOP_GRACE_S)
        await self._serve_http(cluster, core, server)
        await self.node.release_leftovers(await store.list(Volume))
        await server.start()
        log.info("serving CSI on %s for node %s", self.settings.csi_endpoint, self.settings.node_name)

    def _build_services(self, store: Store, core: Core, this: StorageNode) -> CsiServer:
        settings = self.settings
        self._attachable = self._frontends(this, core.reconciler)
        self.node = NodeVolumes(
            settings.node_name, settings.mount_roots, self._attachable, self._notes, settings.snapshot.freeze_timeout_s
        )
        self.keeper.recover_device = self._recover_device
        changes = Changes(store, Volume)
        changes.start()
        self._closers.push_async_callback(changes.stop)
        view = NodeView(store, settings.node_name, core.ledger, changes, lambda: self.keeper.state)
        return build_node_server(self, view, self.node, this, settings.csi_endpoint)

    def _build_settling(self, here: PlacedHere, core: Core) -> SettlingHere:
        snapshots = SnapshotKeeper(self.rpc, here, core.ledger, core.cutter, core.lineage, core.operations)
        snapshots.hides = False
        unrecorded = UnrecordedKeeper(
            self.rpc, here, core.records, core.operations.guard, None, self.keeper.audit_soon, core.reconciler.destroy
        )
        self.keeper.run(snapshots, unrecorded)
        self.keeper.before_volumes(snapshots.brought_up, unrecorded.look)
        self.keeper.after_volumes(snapshots.audited, unrecorded.look)
        still = self._stillness(self._attachable)
        settling = SettlingHere(
            here, core.ledger, core.lineage, core.operations, core.reconciler, core.cutter, still.of
        )
        self._closers.push_async_callback(core.operations.drain, STOP_GRACE_S)
        self._closers.push_async_callback(self.keeper.stop)
        return settling

    async def _recover_device(self, volume: Volume) -> None:
        await self.node.recover(volume)

    async def _local_path(self, volume: str) -> Path | None:
        found = await self._core.store.get(Volume, volume) if self._core else None
        name = self._core.reconciler.bdev_of(found) if self._core and found else ""
        return await self._local_file(name) if name else None

    # --- who this is ---

    async def _hold_name(self, leases: Leases) -> None:
        """Keep other agents off the node's name. One on the same state folder takes its own Lease again at once."""
        name = self.settings.node_name
        identity = f"{name}/{await asyncio.to_thread(own_id, self.settings.state_dir)}"
        self._name = Holder(leases, lease_name(HEARTBEAT, name), identity, lease_s=HEARTBEAT_S, renew_s=RENEW_S)
        await self._name.acquire(refuse_renewed=True)
        self._closers.push_async_callback(self._name.release)
        self._beating = asyncio.create_task(self._name.keep(for_ever=True), name="heartbeat")
        self._closers.push_async_callback(end, self._beating)

    async def _lose_heartbeat(self) -> None:
        await asyncio.shield(self._beating)
        raise FailedPrecondition(
            f"another agent has taken the name {self.settings.node_name}: this one ends. Give each node its own name"
        )

    async def _tell_of_itself(self) -> None:
        """Write down what is so of this node when that changes: nothing is placed where the target does not serve."""
        was_recorded = await self._registration.is_recorded()
        await self._registration.record(self.keeper.state, self.keeper.nature)
        if not was_recorded:
            log.warning("the record of node %s was deleted, and is made again", self.settings.node_name)
            self.keeper.serve_recorded_only()  # it may have been given up, with what lay on it

    async def _serve_http(self, store: KubernetesStore, core: Core, server: CsiServer) -> None:
        parts = Parts(
            role="node",
            node=self.settings.node_name,
            store=store,
            store_writes=store.writes,
            store_requests=store.connection.sent,
            calls=server.calls,
            is_serving=lambda: server.is_serving,
            **self.target_parts(),
            ledger=core.ledger,
            lineage=core.lineage,
            more_reasons=self.troubles,
        )
        endpoint = await serve(self.settings, parts)
        if endpoint is not None:
            self._closers.push_async_callback(endpoint.stop)
