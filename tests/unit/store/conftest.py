"""The store under test: every test that takes `store` runs on each implementation listed here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from agent.store.interface import Store
from agent.store.local import open_local

Opener = Callable[[], Awaitable[Store]]


@pytest.fixture(params=["local"])
async def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Opener]:
    """Opens one more handle on the same data, as another process would have. All are closed at the end."""
    assert request.param == "local"
    async with AsyncExitStack() as stack:

        async def opener() -> Store:
            store = await open_local(tmp_path / "state" / "quarry.db")
            stack.push_async_callback(store.close)
            return store

        yield opener


@pytest.fixture
async def store(open_store: Opener) -> Store:
    return await open_store()
