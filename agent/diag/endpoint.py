"""The local HTTP endpoint of a role: health, metrics and resources, read-only, for probes, Prometheus and operators.

It answers GET and HEAD, to requests without a body, in bounded time; who connects and says nothing is hung up on. There
is no password: it binds to this machine unless an address is given.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from agent import __version__
from agent.config.settings import Settings
from agent.diag.endpoint_file import EndpointFile, remove_stale
from agent.diag.metrics import Exposition
from agent.diag.parts import Parts
from agent.diag.resources import Resources
from agent.errors import FailedPrecondition, NotFound, QuarryError

REQUEST_TIME_LIMIT_S = 10.0
SILENCE_LIMIT_S = 10.0
"""How long a connection may stay without a whole request."""
CONNECTIONS_MAX = 64

log = logging.getLogger(__name__)

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def serve(settings: Settings, parts: Parts) -> Endpoint | None:
    """The endpoint as the settings have it, running; None when they want none.

    Raises FailedPrecondition when an address that was given cannot be used; without the default one things work too.
    """
    if not settings.http_address:
        await asyncio.to_thread(remove_stale, settings.state_dir)
        return None
    endpoint = Endpoint(settings.http_address, settings.state_dir, parts)
    try:
        await endpoint.start()
    except FailedPrecondition as error:
        if "http_address" in settings.model_fields_set:
            raise
        log.warning("%s", error)
        return None
    return endpoint


class Endpoint:
    """Serves `parts` at `address` (HOST:PORT, port 0: any free one) from `start` to `stop`."""

    def __init__(self, address: str, state_dir: Path | None, parts: Parts) -> None:
        self.url = ""
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._state_dir = state_dir
        self._file: EndpointFile | None = None
        self._parts = parts
        self._resources = Resources(parts)
        self._exposition = Exposition(parts)
        self._runner: web.AppRunner | None = None
        self._listening: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen and write the URL down. Raises FailedPrecondition when the address cannot be used."""
        app = web.Application(middlewares=[_bounded], client_max_size=1)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1", self._about)
        app.router.add_get("/v1/{kind}", self._list)
        app.router.add_get("/v1/{kind}/{name:(?s:.+)}", self._show)
        # aiohttp says on its own log, with a traceback, what it cannot parse: anybody could fill the log with that.
        quiet = logging.getLogger(f"{__name__}.http")
        quiet.setLevel(logging.CRITICAL)
        options: dict[str, Any] = {"access_log": None, "logger": quiet, "keepalive_timeout": SILENCE_LIMIT_S}
        runner = web.AppRunner(app, **options)
        await runner.setup()
        self._runner = runner
        host = self._host.strip("[]")
        loop = asyncio.get_running_loop()
        try:
            self._listening = server = await loop.create_server(_doorkeeper(runner), host, self._port)
        except OSError as error:
            await self.stop()
            raise FailedPrecondition(
                f"http_address: cannot listen at {self._host}:{self._port}: {error.strerror or error}; "
                "give another --http-address, or an empty one for none"
            ) from error
        # Who reads the URL is on this machine.
        reached = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(self._host, self._host)  # noqa: S104 - compared only
        self.url = f"http://{reached}:{server.sockets[0].getsockname()[1]}"
        if self._state_dir is not None:
            told = {"url": self.url, "role": self._parts.role, "node": self._parts.node, "pid": os.getpid()}
            self._file = EndpointFile(self._state_dir, told)
            await self._file.start()
        log.info("health and metrics at %s", self.url)

    async def stop(self) -> None:
        """Stop listening; requests under way end."""
        runner, self._runner = self._runner, None
        listening, self._listening = self._listening, None
        file, self._file = self._file, None
        if file is not None:
            await file.stop()
        if listening is not None:
            listening.close()
        if runner is not None:
            await runner.cleanup()

    # --- what is asked ---

    async def _healthz(self, _request: web.Request) -> web.Response:
        # Raises when the store does not answer. What else there is another process would not mend: it is told only.
        reasons = await self._parts.reasons()
        told = "".join(f"not ready: {each.part}: {each.message}\n" for each in reasons)
        return web.Response(text=f"alive\n{told}" if told else "ok\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        reasons = await self._parts.reasons()
        return _json({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)

    async def _metrics(self, request: web.Request) -> web.Response:
        body, content_type = await self._exposition.text(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _about(self, _request: web.Request) -> web.Response:
        parts = self._parts
        about = {"version": __version__, "role": parts.role, "node": parts.node, "kinds": self._resources.kinds}
        return _json(about)

    async def _list(self, request: web.Request) -> web.Response:
        return _json({"items": await self._resources.all(request.match_info["kind"])})

    async def _show(self, request: web.Request) -> web.Response:
        return _json(await self._resources.show(request.match_info["kind"], request.match_info["name"]))


def _doorkeeper(runner: web.AppRunner) -> Callable[[], Any]:
    """Makes the protocol of each connection; one too many is hung up on."""
    server = runner.server
    if server is None:
        raise RuntimeError("the runner is not set up")

    def accept() -> Any:
        return server() if len(server.connections) < CONNECTIONS_MAX else _Refusal()

    return accept


class _Refusal(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


@web.middleware
async def _bounded(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """A request ends in bounded time, and every error of ours is JSON with a fitting status."""
    if request.can_read_body:
        return _failure(413, "requests have no body here")
    try:
        async with asyncio.timeout(REQUEST_TIME_LIMIT_S):
            return await handler(request)
    except TimeoutError:
        return _failure(503, f"no answer within {REQUEST_TIME_LIMIT_S:g} s")
    except NotFound as error:
        return _failure(404, str(error))
    except QuarryError as error:
        return _failure(503, str(error))
    except web.HTTPException as error:
        return _failure(error.status, error.reason)
    except Exception:  # outermost: a defect of ours must answer
        log.exception("%s failed", request.path)
        return _failure(500, "failed unexpectedly; the agent's log has the details")


def _failure(status: int, message: str) -> web.Response:
    return _json({"error": message}, status=status)


def _json(document: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(document) + b"\n", status=status, content_type="application/json")
