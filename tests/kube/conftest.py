"""An API server, a gate before it, and stores that reach it through the gate.

It is a real one where there is one, else an emulator: the tests are the same, but for those that are marked
`apiserver`, with what the emulator has not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest

from agent.store.kubernetes.store import KubernetesStore, open_kubernetes

from . import control_plane, sidecars
from .binder import binding
from .claims import BINDING, DRIVER, Claims
from .cluster import NODES
from .control_plane import ControlPlane
from .gate import Gate
from .gated import GatedCluster
from .installation import Installation
from .installed import InstalledCluster
from .plane import Plane
from .planes import EMULATED, any_plane

Opener = Callable[[], Awaitable[KubernetesStore]]


def pytest_runtest_setup(item: pytest.Item) -> None:
    marker = item.get_closest_marker("apiserver")
    if EMULATED and marker is not None:
        pytest.skip(f"no kube-apiserver, and its emulator has no {marker.args[0]} (docs/testing.md)")


@pytest.fixture(scope="package")
def _plane() -> Iterator[Plane]:
    with any_plane() as plane:
        yield plane


@pytest.fixture(scope="package")
def installation(_plane: ControlPlane) -> Installation:
    """The rendered manifest, applied by an administrator. For tests that are marked `apiserver`."""
    installation = Installation(_plane, NODES)
    installation.install()
    return installation


@pytest.fixture
def plane(_plane: Plane) -> Plane:
    """Running, and empty."""
    _plane.recover()
    _plane.clear()
    return _plane


@pytest.fixture
async def gate(plane: Plane, tmp_path: Path) -> AsyncIterator[Gate]:
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
def new_cluster(plane: Plane, gate: Gate, request: pytest.FixtureRequest) -> Callable[..., GatedCluster]:
    """Takes kinds of targets and a configuration. With the permissions of the manifest, where there are permissions."""
    if EMULATED:
        return partial(GatedCluster, gate)
    return partial(InstalledCluster, request.getfixturevalue("installation"), gate)


@pytest.fixture
async def cluster(new_cluster: Callable[..., GatedCluster]) -> AsyncIterator[GatedCluster]:
    """Two nodes with a target and a disk each, and two controllers."""
    async with new_cluster().running() as cluster:
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
