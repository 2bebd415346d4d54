"""Stands between a store and the API server: passes requests on, and holds, refuses or cuts them as a test says."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from tests.kube.control_plane import ADMIN_TOKEN
from tests.kube.plane import Plane


@dataclass
class Rule:
    """What happens to requests of `method` whose path holds `part`, `times` times.

    `status` and `body` answer in the server's place, `before` runs first, `lose_answer` carries the request out and
    then cuts the connection.
    """

    method: str
    part: str = ""
    times: int = 1_000_000
    status: int = 0
    body: dict[str, Any] = field(default_factory=lambda: {"kind": "Status", "message": "the gate says no"})
    headers: dict[str, str] = field(default_factory=dict)
    lose_answer: bool = False
    before: Callable[[], Awaitable[None]] | None = None
    met: int = 0


class Gate:
    """`seen` are the requests that came, `rules` decide in order; `is_shut` cuts everything, watches included.

    `asked` are the requests of each token, by what was asked.
    """

    def __init__(self, plane: Plane, folder: Path) -> None:
        self.plane = plane
        self.kubeconfig = folder / "gate-kubeconfig"
        self.seen: list[tuple[str, str]] = []
        self.asked: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.rules: list[Rule] = []
        self.is_shut = False
        self._streams: set[asyncio.Task[object]] = set()

    async def start(self) -> None:
        tls = ssl.create_default_context(cafile=self.plane.ca)
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, ssl=tls))
        application = web.Application(client_max_size=1 << 24)
        application.router.add_route("*", "/{path:.*}", self._pass)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        (address,) = self._runner.addresses
        self._url = f"http://127.0.0.1:{address[1]}"
        self.kubeconfig.write_text(json.dumps(self.config(ADMIN_TOKEN)))

    def config(self, token: str) -> dict[str, Any]:
        """A kubeconfig of whom `token` stands for, which leads through here."""
        return self.plane.config(token, self._url)

    async def stop(self) -> None:
        self.cut()
        await self._session.close()
        await self._runner.cleanup()

    def cut(self) -> None:
        """Ends all requests that are under way, watches too."""
        for task in self._streams:
            task.cancel()

    def shut(self) -> None:
        self.is_shut = True
        self.cut()

    def writes(self) -> list[str]:
        return [method for method, _ in self.seen if method != "GET"]

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        task = asyncio.current_task()
        if task is not None:
            self._streams.add(task)
            task.add_done_callback(self._streams.discard)
        self.seen.append((request.method, request.path_qs))
        self.asked[request.headers.get("Authorization", "").removeprefix("Bearer ")][
            f"{request.method} {request.path}"
        ] += 1
        rule = next((each for each in self.rules if self._meets(each, request)), None)
        if rule is not None:
            rule.met += 1
            if rule.before is not None:
                await rule.before()
        if self.is_shut:
            return self._hang_up(request)
        if rule is not None and rule.status:
            return web.json_response(rule.body, status=rule.status, headers=rule.headers)
        try:
            return await self._forward(request, lose=rule is not None and rule.lose_answer)
        except (aiohttp.ClientError, TimeoutError):
            return self._hang_up(request)

    @staticmethod
    def _meets(rule: Rule, request: web.Request) -> bool:
        return rule.method == request.method and rule.part in request.path_qs and rule.met < rule.times

    @staticmethod
    def _hang_up(request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)

    async def _forward(self, request: web.Request, *, lose: bool) -> web.StreamResponse:
        kept = ("Authorization", "Content-Type", "Accept", "User-Agent")
        headers = {name: request.headers[name] for name in kept if name in request.headers}
        url = f"{self.plane.url}{request.path_qs}"
        async with self._session.request(request.method, url, data=await request.read(), headers=headers) as answer:
            if lose:
                await answer.read()
                return self._hang_up(request)
            response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response
