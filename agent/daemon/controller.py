"""`quarry controller`: decides for all nodes of a cluster while it leads; nodes carry out what it records."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from agent.config.settings import Settings
from agent.csi.server import CsiServer, build_controller_server
from agent.daemon.cluster import HEARTBEAT, LEADER, LEASE_S, RENEW_S, events_of, lease_namespace
from agent.daemon.lifecycle import STOP_GRACE_S, end, ledger, make_private
from agent.daemon.signals import either, stop_event
from agent.diag.endpoint import serve
from agent.diag.parts import Parts
from agent.errors import Unavailable
from agent.model import StorageNode, TargetState, Volume
from agent.store.fenced import FencedStore
from agent.store.kubernetes.leases import HEARTBEATS_LOOK_S, Heartbeats, Holder, Leases
from agent.store.kubernetes.store import KubernetesStore, open_kubernetes
from agent.tasks.background import Background
from agent.tasks.guard import VolumeGuard
from agent.tasks.operations import Operations
from agent.volumes.controller.adopting import Adopting
from agent.volumes.controller.fleet import Fleet
from agent.volumes.controller.giving_up import GivingUp
from agent.volumes.controller.remote import RemoteSettler, RemoteSnapshots
from agent.volumes.controller.roll_call import TOLD_AFTER_S, RollCall
from agent.volumes.service.lineage import Lineage
from agent.volumes.service.service import VolumeService
from agent.volumes.service.snapshot_records import SnapshotRecords
from agent.volumes.service.snapshots import SnapshotService
from agent.volumes.service.sources import Sources
from agent.volumes.service.telling import TellingStore, VolumeNews

log = logging.getLogger(__name__)


class Controller:
    """One of the controllers of a cluster. It leads at most once in its life: one that is deposed ends."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._closers = contextlib.AsyncExitStack()
        self._counted = False

    async def run_until_signal(self) -> None:
        """Run until SIGTERM or SIGINT. Raises Unavailable when another controller has taken over."""
        stopping = stop_event()
        async with self._closers:
            await either(stopping, asyncio.create_task(self._run(), name="controller"))

    def health(self) -> TargetState:
        """Ready while it leads, which is when the sidecars beside it may work."""
        return TargetState.READY if self._counted and self._leader.holds else TargetState.STARTING

    async def _run(self) -> None:
        settings = self.settings
        make_private(settings.state_dir)
        store = await open_kubernetes(settings.kubeconfig)
        self._closers.push_async_callback(store.close)
        leases = Leases(store.connection, lease_namespace(settings))
        self._leader = Holder(leases, LEADER, settings.identity, lease_s=LEASE_S, renew_s=RENEW_S)
        self._closers.push_async_callback(self._leader.release)
        self._build(store, leases)
        server = build_controller_server(self, self.volumes, self.snapshots, settings.csi_endpoint, self._admit)
        self._closers.push_async_callback(server.stop, STOP_GRACE_S)
        await self._serve_http(store, server)
        await server.start()
        log.info("serving CSI on %s; waiting to lead as %s", settings.csi_endpoint, settings.identity)
        await self._leader.acquire()
        keeping = asyncio.create_task(self._leader.keep(), name="lease")
        self._closers.push_async_callback(end, keeping)
        await self._begin()
        await keeping
        raise Unavailable("another controller leads now, or the Kubernetes API is away: this one ends")

    def _build(self, store: KubernetesStore, leases: Leases) -> None:
        tell = events_of(store, "controller", self.settings.identity, self._closers)
        fenced = FencedStore(TellingStore(store, tell), lambda: self._leader.until)
        self._news = VolumeNews(store, tell)
        book, lineage, operations = ledger(self.settings.pool), Lineage(), Operations(VolumeGuard())
        self._heartbeats = Heartbeats(leases, HEARTBEAT, lambda: self._fleet.nodes_changed())
        self._fleet = Fleet(fenced, book, lineage, operations, self._heartbeats.is_alive)
        fleet = self._fleet
        settler = RemoteSettler(fleet.volumes, book, lineage, fenced.require, fleet)
        cutter = RemoteSnapshots(fenced, fleet.snapshots, book, lineage, fleet.excuse)
        fleet.settler = cutter
        records = SnapshotRecords(fenced, book, lineage)
        self.snapshots = SnapshotService(fenced, records, cutter, lineage, operations, _nothing_to_freeze)
        sources = Sources(fenced, book, self.snapshots, records, lineage)
        self.volumes = VolumeService(fenced, book, settler, operations, self.health, _no_file, sources)
        self.volumes.target_of = fleet.target_of
        self._cluster, self._fenced = store, fenced
        self._roll_call = RollCall(fenced, operations, self._heartbeats.silent_s)
        self._adopting = Adopting(fenced, operations)
        self._giving_up = GivingUp(fenced, operations, self._roll_call.is_dead)
        self._ledger, self._lineage = book, lineage
        self._closers.push_async_callback(operations.drain, STOP_GRACE_S)
        self._closers.push_async_callback(fleet.stop)

    async def _begin(self) -> None:
        """Count everything there is, then answer."""
        await self._heartbeats.look()
        looking = Background()
        looking.every("heartbeats", HEARTBEATS_LOOK_S, self._heartbeats.look_again)
        looking.every("roll-call", HEARTBEATS_LOOK_S, self._look_at_nodes)
        self._closers.push_async_callback(looking.stop)
        await self._fleet.start()
        await self.volumes.start()
        self._news.start()
        self._closers.push_async_callback(self._news.stop)
        self._counted = True
        log.info("%s leads", self.settings.identity)

    async def _dead_nodes(self) -> Mapping[str, bool]:
        if self.health() is not TargetState.READY:
            return {}
        nodes = await self._fenced.list(StorageNode)
        return {each.meta.name: self._roll_call.is_dead(each.meta.name) for each in nodes}

    async def _look_at_nodes(self) -> None:
        """Tell of nodes that give no sign of life, and give up what lies on those that were forgotten."""
        await self._roll_call.look()
        await self._giving_up.look()
        await self._adopting.look()
        self._fenced.require()
        await self._cluster.protect()
        known = {each.meta.name for each in await self._fenced.list(StorageNode)}
        await self._heartbeats.tidy(known, TOLD_AFTER_S)

    def _admit(self) -> None:
        if self.health() is not TargetState.READY:
            leader = self._leader.leader
            known = f"; {leader} does" if leader not in ("", self.settings.identity) else ""
            raise Unavailable(f"controller {self.settings.identity} does not lead{known}: repeat the call")

    async def _serve_http(self, store: KubernetesStore, server: CsiServer) -> None:
        parts = Parts(
            role="controller",
            store=store,
            store_writes=store.writes,
            store_requests=store.connection.sent,
            calls=server.calls,
            is_serving=lambda: server.is_serving,
            ledger=self._ledger,
            lineage=self._lineage,
            conditions=self.volumes.conditions,
            dead_nodes=self._dead_nodes,
        )  # one that waits its turn is ready: a Deployment must not replace it for that
        endpoint = await serve(self.settings, parts)
        if endpoint is not None:
            self._closers.push_async_callback(endpoint.stop)


@contextlib.asynccontextmanager
async def _nothing_to_freeze(volume: Volume) -> AsyncIterator[None]:
    yield


async def _no_file(name: str) -> Path | None:
    return None
