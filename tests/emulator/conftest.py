"""The roles of a cluster on the emulator: one way for everybody, as there are no tokens and roles."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest

from agent.store.kubernetes.store import KubernetesStore, open_kubernetes
from tests.kube.cluster import CONTROLLERS, NODES, Cluster

from .emulator import Emulator, emulator

Opener = Callable[[], Awaitable[KubernetesStore]]


@pytest.fixture(scope="package")
def _plane() -> Iterator[Emulator]:
    with emulator() as plane:
        yield plane


@pytest.fixture
def plane(_plane: Emulator) -> Emulator:
    """Running, and empty."""
    _plane.clear()
    return _plane


@dataclass(frozen=True)
class Way:
    """In place of the gate, for what tests ask as an administrator."""

    plane: Emulator


@pytest.fixture
def gate(plane: Emulator) -> Way:
    return Way(plane)


@pytest.fixture
async def open_store(plane: Emulator) -> AsyncIterator[Opener]:
    async with AsyncExitStack() as stack:

        async def opener() -> KubernetesStore:
            store = await open_kubernetes(plane.kubeconfig)
            stack.push_async_callback(store.abandon)
            return store

        yield opener


@pytest.fixture
async def cluster(plane: Emulator) -> AsyncIterator[Cluster]:
    """Two nodes with a target and a disk each, and two controllers."""
    made = Cluster(plane.kubeconfig)
    try:
        for name in (*NODES, *CONTROLLERS):
            made.start(name)
        await made.whole()
        yield made
    finally:
        await asyncio.to_thread(made.stop)
