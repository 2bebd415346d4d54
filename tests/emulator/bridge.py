"""Stands before the emulator, which does some things otherwise than a kube-apiserver.

Watches: it has them over WebSocket only, begins each with all objects there are, and stops for a minute when one is
closed; so there is one for each kind from the start, which is told on as a kube-apiserver tells: lines, from a version
on. Versions: a deletion has none of its own; so all are multiplied on the way out and divided on the way in, which
leaves room for those of deletions. Answers: to a deletion comes the object as it was before, to the patch that lets go
of an object nothing, and 409 has the same reason for a name that is taken. Patches: empty lists are passed over,
and null is stored. To be marked as deleting makes no new generation.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp import web

_VERSION = re.compile(rb'("resourceVersion":\s*")(\d+)(")')
_SCALE = 1000
_DELETED = b'{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Success"}'
_EVENT_S = 5.0
"""How long the event of a deletion may take: it is told after the answer."""


class Watched:
    """The changes of one kind so far, as they are told."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, bytes]] = []
        self.deletions: list[str] = []
        """Names."""
        self._more = asyncio.Event()

    def add(self, version: int, event: dict[str, Any]) -> None:
        metadata = event["object"]["metadata"]
        metadata["resourceVersion"] = str(version)
        if event["type"] == "DELETED":
            self.deletions.append(metadata["name"])
        self.lines.append((version, json.dumps(event).encode() + b"\n"))
        self._more.set()
        self._more = asyncio.Event()

    async def more(self) -> None:
        await self._more.wait()


class Bridge:
    """From `run` on a port of loopback to `upstream`, whose `watched` paths are followed."""

    def __init__(self, upstream: str, watched: list[str]) -> None:
        self._upstream = upstream
        self._watched = {path: Watched() for path in watched}
        self._session: aiohttp.ClientSession
        self._newest = 0
        """Of the versions that were told."""

    async def run(self, port: int) -> None:
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(timeout=timeout) as self._session, asyncio.TaskGroup() as group:
            for path, watched in self._watched.items():
                group.create_task(self._follow(path, watched))
            app = web.Application(client_max_size=64 << 20)
            app.router.add_route("*", "/{path:.*}", self._serve)
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port).start()

    async def _follow(self, path: str, watched: Watched) -> None:
        async with self._session.ws_connect(f"{self._upstream}{path}?watch=true", max_msg_size=0) as events:
            async for message in events:
                event: dict[str, Any] = _corrected(json.loads(message.data))
                version = _SCALE * int(event["object"]["metadata"]["resourceVersion"])
                if event["type"] == "DELETED":
                    version = self._newest + 1
                self._newest = max(self._newest, version)
                watched.add(version, event)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("watch") in ("1", "true"):
            return await self._watch(request)
        url, body = self._upstream + request.path_qs, _scaled(await request.read(), lambda version: version // _SCALE)
        body = body.replace(b'"finalizers":[]', b'"finalizers":null')
        if request.method == "DELETE" or b'"finalizers":null' in body:
            return await self._end(request, url, body)
        status, text = await self._ask(request, url, body)
        if status == 409 and request.method == "POST":
            text = text.replace(b'"reason": "Invalid"', b'"reason": "AlreadyExists"')
        if request.method == "GET" and request.path in self._watched:
            begin, _, end = text.rpartition(b'"resourceVersion"')  # the list's own
            text = begin + _scaled(b'"resourceVersion"' + end, lambda version: max(version, self._newest))
        return web.Response(status=status, body=text, content_type="application/json")

    async def _end(self, request: web.Request, url: str, body: bytes) -> web.StreamResponse:
        """What may take an object away; the answer comes after the event."""
        path, _, name = request.path.rpartition("/")
        watched = self._watched.get(path)
        known = watched.deletions.count(name) if watched else 0
        before = await self._object(url)
        status, text = await self._ask(request, url, body)
        after = await self._object(url)
        if status < 300:
            text = after or (_DELETED if request.method == "DELETE" else before)
        if watched is not None and before and not after:
            async with asyncio.timeout(_EVENT_S):
                while watched.deletions.count(name) == known:
                    await watched.more()
        return web.Response(status=status, body=text, content_type="application/json")

    async def _ask(self, request: web.Request, url: str, body: bytes) -> tuple[int, bytes]:
        headers = {"Content-Type": request.headers.get("Content-Type", "application/json")}
        async with self._session.request(request.method, url, data=body or None, headers=headers) as answer:
            return answer.status, self._told(await answer.read())

    async def _object(self, url: str) -> bytes:
        """The object as it is now; empty when there is none."""
        async with self._session.get(url) as answer:
            return self._told(await answer.read()) if answer.status == 200 else b""

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        since = int(request.query.get("resourceVersion") or 0)
        watched, position = self._watched[request.path], 0
        lines = web.StreamResponse(headers={"Content-Type": "application/json"})
        await lines.prepare(request)
        while True:
            while position < len(watched.lines):
                version, line = watched.lines[position]
                position += 1
                if version > since:
                    await lines.write(line)
            await watched.more()

    def _told(self, text: bytes) -> bytes:
        if not text:
            return text
        text = json.dumps(_corrected(json.loads(text))).encode()
        text = _scaled(text, lambda version: _SCALE * version)
        self._newest = max([self._newest, *(int(found[2]) for found in _VERSION.finditer(text))])
        return text


def _corrected(value: Any) -> Any:
    if isinstance(value, list):
        return [_corrected(each) for each in value]
    if not isinstance(value, dict):
        return value
    corrected = {key: _corrected(each) for key, each in value.items() if each is not None}
    if "deletionTimestamp" in corrected and "generation" in corrected:
        corrected["generation"] += 1
    return corrected


def _scaled(text: bytes, by: Callable[[int], int]) -> bytes:
    return _VERSION.sub(lambda found: found[1] + str(by(int(found[2]))).encode() + found[3], text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("upstream")
    parser.add_argument("watched", nargs="*", help="paths")
    given = parser.parse_args()
    asyncio.run(Bridge(given.upstream, given.watched).run(given.port))
