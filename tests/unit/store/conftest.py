"""The stores under test: every test that takes `store` runs on each implementation listed here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.store.interface import Store
from agent.store.kubernetes.store import open_kubernetes
from agent.store.limits import BUFFER_EVENTS, KEPT_CHANGES
from agent.store.local import open_local
from tests.kube.plane import Plane
from tests.kube.planes import any_plane

Opener = Callable[[], Awaitable[Store]]

PATIENCE_S = 10.0
"""How long a handle on a cluster may take to see what another one wrote; milliseconds are usual."""


@dataclass(frozen=True)
class Limits:
    """Of the implementation under test. `at_once`: other handles' writes are seen by the next read."""

    at_once: bool
    buffer_events: int
    kept_changes: int


LIMITS = {
    "local": Limits(True, BUFFER_EVENTS, KEPT_CHANGES),
    # Small: each write is a request to an API server.
    "kubernetes": Limits(False, 128, 512),
}


@pytest.fixture(scope="module")
def plane() -> Iterator[Plane]:
    """A kube-apiserver, or an emulator of it; one for all tests of a module."""
    with any_plane() as plane:
        yield plane


@pytest.fixture(params=list(LIMITS))
def limits(request: pytest.FixtureRequest) -> Limits:
    return LIMITS[request.param]


@pytest.fixture
async def open_store(limits: Limits, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Opener]:
    """Opens one more handle on the same data, as another process would have. All are closed at the end."""
    plane: Plane | None = None
    if limits is LIMITS["kubernetes"]:
        plane = request.getfixturevalue("plane")
        await asyncio.to_thread(plane.clear)
    async with AsyncExitStack() as stack:

        async def opener() -> Store:
            store: Store
            if plane is None:
                store = await open_local(tmp_path / "state" / "quarry.db")
            else:
                buffer, kept = limits.buffer_events, limits.kept_changes
                store = await open_kubernetes(plane.kubeconfig, buffer_events=buffer, kept_changes=kept)
            stack.push_async_callback(store.close)
            return store

        yield opener


@pytest.fixture
async def store(open_store: Opener) -> Store:
    return await open_store()


async def becomes(look: Callable[[], Awaitable[object]], wanted: object, limits: Limits) -> None:
    """`look` gives `wanted`: at once, or where others' writes take a moment, soon."""
    deadline = time.monotonic() + (0 if limits.at_once else PATIENCE_S)
    while (found := await look()) != wanted:
        assert time.monotonic() < deadline, f"{found!r} instead of {wanted!r}"
        await asyncio.sleep(0.002)
