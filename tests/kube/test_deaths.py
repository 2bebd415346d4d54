"""Deaths under load: of the leader, of a node's agent, of the API server, of its database. Nothing lost or doubled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agent.csi.client import CallFailed, CsiClient

from .claims import CLAIMS, Claims
from .cluster import CONTROLLERS, MIB, NODES
from .conftest import Opener
from .control_plane import ControlPlane
from .gated import GatedCluster
from .load import Load, in_use, of_calls, of_claims, settled
from .plane import API, DATABASE, Plane

pytestmark = pytest.mark.timeout(400)

FAILOVER_S = 15.0
OUTAGE_S = 20.0
"""Longer than a Lease: whoever leads has to give up."""

LOOK_S = 10.0
IDLE = 12
"""Requests of one process in LOOK_S while there is nothing to do: Leases, each other's Leases, an audit."""

AWAY = 200
"""The same while the API does not answer: five watches that begin anew, Leases, and four callers who ask for more and
more, five times a second each. A loop without a pause makes thousands.
"""

Death = Callable[[GatedCluster, Any], Awaitable[None]]


async def leader_dies(cluster: GatedCluster, plane: Plane) -> None:
    leader = await cluster.leader()
    (other,) = set(CONTROLLERS) - {leader}
    began = time.monotonic()
    cluster.kill(leader)
    while not await _serves(cluster, other):
        assert time.monotonic() - began < 2 * FAILOVER_S, cluster.logs()
        await asyncio.sleep(0.05)
    took_s = time.monotonic() - began
    cluster.start(leader)
    await cluster.answering(leader)
    print(f"another controller served {took_s:.1f} s after the leader was killed")
    assert took_s < FAILOVER_S


async def _serves(cluster: GatedCluster, controller: str) -> bool:
    try:
        async with CsiClient(cluster.socket(controller), timeout_s=2.0) as csi:
            await csi.list_volumes(max_entries=1)
    except CallFailed:
        return False
    return True


async def node_dies(cluster: GatedCluster, plane: Plane) -> None:
    cluster.kill(NODES[0])
    await asyncio.sleep(2.0)  # calls come to wait for it
    cluster.start(NODES[0])
    await cluster.node_ready(NODES[0])


async def api_dies(cluster: GatedCluster, plane: Plane) -> None:
    plane.kill(API)
    await _calm(cluster, AWAY)
    await asyncio.sleep(OUTAGE_S - LOOK_S)
    plane.launch_apiserver()
    await asyncio.to_thread(plane.await_apiserver)


async def database_dies(cluster: GatedCluster, plane: ControlPlane) -> None:
    plane.kill(DATABASE)
    await _calm(cluster, AWAY)
    await asyncio.sleep(OUTAGE_S - LOOK_S)
    plane.start_etcd()
    await asyncio.to_thread(plane.await_apiserver)


async def _calm(cluster: GatedCluster, limit: int) -> None:
    """For LOOK_S no process asks more than `limit` times."""
    before = cluster.asked()
    await asyncio.sleep(LOOK_S)  # how much is asked meanwhile is what is looked at
    asked = {name: requests - before[name] for name, requests in cluster.asked().items()}
    print({name: requests.total() for name, requests in asked.items()})
    assert all(requests.total() <= limit for requests in asked.values()), asked


DEATHS: list[Death] = [leader_dies, node_dies, api_dies, database_dies]


@asynccontextmanager
async def _running(load: Load) -> AsyncIterator[None]:
    load.begin()
    try:
        yield
        await load.more(12)
        await load.end()
    finally:
        await load.cancel()


DURABLE = pytest.mark.apiserver("database that outlives its death")


@pytest.mark.parametrize(
    "death",
    [pytest.param(each, id=each.__name__, marks=DURABLE if each is database_dies else ()) for each in DEATHS],
)
async def test_under_calls(death: Death, cluster: GatedCluster, plane: Plane, open_store: Opener) -> None:
    store, load = await open_store(), Load(of_calls(cluster))
    held = await cluster.ask(lambda csi: csi.create_volume("held", 16 * MIB))
    async with cluster.kubelet(), cluster.opened(held, "node-b") as host:
        async with in_use(host), _running(load):
            await load.more(6)
            await death(cluster, plane)
        await settled(cluster, store, load.kept | {held})
        await _calm(cluster, IDLE)
    for volume in (*load.kept, held):
        await cluster.ask(lambda csi, volume=volume: csi.delete_volume(volume))
    await settled(cluster, store, set())


@pytest.mark.apiserver("tokens for the sidecars")
async def test_under_claims(claims: Claims, cluster: GatedCluster, plane: Plane, open_store: Opener) -> None:
    """All four, one after the other, with claims that come and go through the sidecars."""
    store, load = await open_store(), Load(of_claims(claims))
    await claims.claim("held", "16Mi", "node-a")
    held = await claims.bound("held")
    async with claims.attached(held, "node-b") as host, in_use(host), _running(load):
        for death in DEATHS:
            await load.more(6)
            await death(cluster, plane)
    await settled(cluster, store, load.kept | {held["spec"]["csi"]["volumeHandle"]})
    for claim in await claims.list(CLAIMS):
        await claims.delete(f"{CLAIMS}/{claim['metadata']['name']}")
    await claims.all_gone()
