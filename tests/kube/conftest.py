"""A real API server, a gate before it, and stores that reach it through the gate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from agent.store.kubernetes.store import KubernetesStore, open_kubernetes

from .control_plane import ControlPlane, missing
from .gate import Gate

Opener = Callable[[], Awaitable[KubernetesStore]]


@pytest.fixture(scope="module")
def _plane() -> Iterator[ControlPlane]:
    why = missing()
    if why:
        pytest.skip(why)
    plane = ControlPlane()
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


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


async def until(look: Callable[[], Awaitable[object]], timeout_s: float = 20.0) -> None:
    """Waits until `look` is true."""
    async with asyncio.timeout(timeout_s):
        while not await look():  # noqa: ASYNC110 - what is looked at is elsewhere
            await asyncio.sleep(0.01)
