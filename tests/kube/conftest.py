"""A real API server, a gate before it, and stores that reach it through the gate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from agent.store.kubernetes.store import KubernetesStore, open_kubernetes

from . import control_plane, sidecars
from .binder import binding
from .claims import BINDING, DRIVER, Claims
from .cluster import NODES
from .control_plane import ControlPlane
from .gate import Gate
from .installation import Installation
from .installed import InstalledCluster

Opener = Callable[[], Awaitable[KubernetesStore]]


@pytest.fixture(scope="package")
def _plane() -> Iterator[ControlPlane]:
    with control_plane.control_plane() as plane:
        yield plane


@pytest.fixture(scope="package")
def installation(_plane: ControlPlane) -> Installation:
    """The rendered manifest, applied by an administrator."""
    installation = Installation(_plane, NODES)
    installation.install()
    return installation


@pytest.fixture
def plane(_plane: ControlPlane) -> ControlPlane:
    """Running, and empty."""
    _plane.recover()
    _plane.clear()
    return _plane


@pytest.fixture
async def gate(plane: ControlPlane, tmp_path: Path) -> AsyncIterator[Gate]:
    gate = Gate(plane, tmp_path)
    await gate.start()
    yield gate
    await gate.stop()


@pytest.fixture
async def open_store(gate: Gate) -> AsyncIterator[Opener]:
    async with AsyncExitStack() as stack:

        async def opener() -> KubernetesStore:
            store = await open_kubernetes(gate.kubeconfig)
            stack.push_async_callback(store.abandon)
            return store

        yield opener


@pytest.fixture
async def store(open_store: Opener) -> KubernetesStore:
    return await open_store()


@pytest.fixture
async def cluster(plane: ControlPlane, installation: Installation, gate: Gate) -> AsyncIterator[InstalledCluster]:
    """Two nodes with a target and a disk each, and two controllers."""
    async with InstalledCluster(installation, gate).running() as cluster:
        yield cluster


@pytest.fixture
def _sidecars() -> None:
    if why := sidecars.missing():
        pytest.skip(why)


@pytest.fixture
async def claims(_sidecars: None, cluster: InstalledCluster, installation: Installation) -> AsyncIterator[Claims]:
    """The cluster with all sidecars, its nodes registered; what ends is started again."""
    claims = Claims(cluster, installation)
    await claims.clear()
    cluster.start_sidecars()
    for node in NODES:
        await claims.register(node)
    async with cluster.kubelet(), AsyncExitStack() as stack:
        if control_plane.find(control_plane.CONTROLLER_MANAGER):
            installation.plane.start_controllers(*BINDING)
        else:
            await stack.enter_async_context(binding(installation.admin, DRIVER))
        yield claims


async def until(look: Callable[[], Awaitable[object]], timeout_s: float = 20.0) -> None:
    """Waits until `look` is true."""
    async with asyncio.timeout(timeout_s):
        while not await look():  # noqa: ASYNC110 - what is looked at is elsewhere
            await asyncio.sleep(0.01)
