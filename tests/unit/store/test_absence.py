"""An API server that cannot be reached, and comes back: many who ask are one who tries."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from agent.errors import Unavailable
from agent.store.kubernetes import connection
from agent.store.kubernetes.connection import Connection, connect
from agent.store.kubernetes.refusals import Asked
from tests.contract.targets import free_port
from tests.kube.plane import kubeconfig

CALLERS = 100
AWAY_S = 5.0
"""Until pauses are long."""


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
async def api(port: int, tmp_path: Path) -> AsyncIterator[Connection]:
    """To a server that is not there."""
    file = tmp_path / "kubeconfig"
    file.write_text(json.dumps(kubeconfig(f"http://127.0.0.1:{port}")))
    api = await connect(file)
    yield api
    await api.close()


async def test_many_callers_ask_a_server_that_is_away_no_more_than_one_would(api: Connection) -> None:
    answers = await asyncio.gather(*_callers(api), return_exceptions=True)
    assert {type(each) for each in answers} == {Unavailable}
    assert all("Cannot connect" in str(each) for each in answers), set(map(str, answers))
    # Those that went at once; then one after a pause of at least 0.025 s, twice as long each time, 1 s in the end.
    assert connection.IN_FLIGHT <= api.sent.total() < connection.IN_FLIGHT + 6 + connection.REQUEST_S


async def test_a_server_that_hangs_up_is_away_too(api: Connection, port: int) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", port)
    callers = _callers(api)
    await asyncio.sleep(AWAY_S)
    assert connection.IN_FLIGHT <= api.sent.total() < connection.IN_FLIGHT + 6 + AWAY_S
    lost = [caller for caller in callers if caller.done()]
    assert len(lost) == api.sent.total()  # each may have happened, so it is not asked again here
    server.close()
    await server.wait_closed()
    async with _serving(port) as met, asyncio.timeout(5):
        await asyncio.gather(*callers, return_exceptions=True)
        assert len(met) == CALLERS - len(lost)


async def test_all_are_answered_when_it_is_back(api: Connection, port: int) -> None:
    callers = _callers(api)
    await asyncio.sleep(AWAY_S)
    assert not any(caller.done() for caller in callers)
    tries = api.sent.total()
    async with _serving(port) as met, asyncio.timeout(5):
        await asyncio.gather(*callers)
        assert len(met) == CALLERS
    assert api.sent.total() <= tries + CALLERS + 1


def _callers(api: Connection) -> list[asyncio.Task[dict[str, Any]]]:
    asked = Asked("Volume", "a")
    return [asyncio.create_task(api.request("POST", "/volumes", asked, body={})) for _ in range(CALLERS)]


@asynccontextmanager
async def _serving(port: int) -> AsyncIterator[list[str]]:
    """The paths that were asked for."""
    met: list[str] = []

    async def serve(request: web.Request) -> web.Response:
        met.append(request.path)
        return web.json_response({})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield met
    finally:
        await runner.cleanup()
