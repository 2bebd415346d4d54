"""Stands before the emulator, which does some things otherwise than a kube-apiserver.

Watches: it has them over WebSocket only, begins each with all objects there are, and stops for a minute when one is
closed; so there is one for each kind from the start, which is told on as a kube-apiserver tells: lines, from a version
on. Versions: a deletion has none of its own; so all are multiplied on the way out and divided on the way in, which
leaves room for those of deletions. Lists: it has no pages. Merge patches: it adds to lists instead of replacing them,
and stores null; so what a patch makes of an object (RFC 7386) is put. Answers: to a deletion comes the object as it was
before, to the patch that lets go of an object nothing, and 409 has the same reason for a name that is taken. To be
marked as deleting makes no new generation.

What is stored ends with the emulator. So it is here that the server dies and comes back, and that what was before is
forgotten, as standard input says (`start`, `die`, `forget`); each is said back when it is done.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import aiohttp
from aiohttp import web

Json = dict[str, Any]

_MERGE = "application/merge-patch+json"
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

    def add(self, version: int, event: Json) -> None:
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
        self._oldest = self._newest = 0
        """Of the versions that were told; what was before `_oldest` is forgotten."""
        self._pages: dict[str, Json] = {}
        """What is left of lists, by the token that asks for it."""
        self._tokens = itertools.count()
        self._writing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """By path of the object."""

    async def run(self, port: int) -> None:
        """Does what the lines of standard input say, until its end."""
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(timeout=timeout) as self._session, asyncio.TaskGroup() as group:
            following = [group.create_task(self._follow(path, watched)) for path, watched in self._watched.items()]
            orders = asyncio.StreamReader()
            await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(orders), sys.stdin.buffer
            )
            runner = web.AppRunner(web.Application())
            async for order in orders:
                match order:
                    case b"start\n":
                        runner = await self._listen(port)
                    case b"die\n":
                        await runner.cleanup()
                    case b"forget\n":
                        self._oldest = self._newest
                        self._pages.clear()
                sys.stdout.buffer.write(order)
                sys.stdout.flush()
            for task in following:
                task.cancel()

    async def _listen(self, port: int) -> web.AppRunner:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", self._serve)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01)  # 0 is for ever
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        return runner

    async def _follow(self, path: str, watched: Watched) -> None:
        async with self._session.ws_connect(f"{self._upstream}{path}?watch=true", max_msg_size=0) as events:
            async for message in events:
                event: Json = _corrected(_without_null(json.loads(message.data)))
                version = _SCALE * int(event["object"]["metadata"]["resourceVersion"])
                if event["type"] == "DELETED":
                    version = self._newest + 1
                self._newest = max(self._newest, version)
                watched.add(version, event)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        method, url = request.method, self._upstream + request.path_qs
        if request.query.get("watch") in ("1", "true"):
            return await self._watch(request)
        if method == "GET" and request.path in self._watched:
            return await self._list(request)
        if method == "GET":
            return _json(*await self._ask("GET", url))
        body, path = _scaled(await request.read(), lambda version: version // _SCALE), _object_of(request.path)
        async with self._writing[path]:
            if method == "DELETE":
                return await self._delete(path)
            if method == "PATCH" and request.content_type == _MERGE:
                return await self._patch(path, url, json.loads(body))
            status, text = await self._ask(method, url, body, request.content_type)
        if status == 409 and method == "POST":
            text = text.replace(b'"reason": "Invalid"', b'"reason": "AlreadyExists"')
        return _json(status, text)

    async def _patch(self, path: str, url: str, patch: Json) -> web.StreamResponse:
        status, before = await self._object(path)
        if before is None:
            return _json(status, b"{}")
        after = _merged(before, patch)
        if after["metadata"]["resourceVersion"] != before["metadata"]["resourceVersion"]:
            return _json(409, _failure(409, "Conflict"))
        ends = "deletionTimestamp" in after["metadata"] and not after["metadata"].get("finalizers")
        async with self._ended(path) if ends else nullcontext():
            status, text = await self._ask("PUT", url, json.dumps(after).encode())
        return _json(status, self._told(json.dumps(after).encode()) if ends else text)

    async def _delete(self, path: str) -> web.StreamResponse:
        _, before = await self._object(path)
        ends = before is not None and not before["metadata"].get("finalizers")
        async with self._ended(path) if ends else nullcontext():
            status, text = await self._ask("DELETE", self._upstream + path)
        if status < 300:
            text = _DELETED if ends else (await self._ask("GET", self._upstream + path))[1]
        return _json(status, text)

    @asynccontextmanager
    async def _ended(self, path: str) -> AsyncIterator[None]:
        """Ends when the object's deletion, which the block brings about, was told."""
        kind, _, name = path.rpartition("/")
        watched = self._watched.get(kind)
        known = watched.deletions.count(name) if watched else 0
        yield
        async with asyncio.timeout(_EVENT_S):
            while watched and watched.deletions.count(name) == known:
                await watched.more()

    async def _list(self, request: web.Request) -> web.StreamResponse:
        token, limit, before = request.query.get("continue"), int(request.query.get("limit") or 0), self._newest
        if token is None:
            status, text = await self._ask("GET", self._upstream + request.path)
            found: Json = json.loads(text)
            own = found["metadata"]
            own["resourceVersion"] = str(max(before, int(own["resourceVersion"])))
        elif token in self._pages:
            status, found = 200, self._pages.pop(token)
        else:
            return _json(410, _failure(410, "Expired"))
        if limit and len(found["items"]) > limit:
            token = str(next(self._tokens))
            self._pages[token] = found | {"items": found["items"][limit:]}
            found = found | {"items": found["items"][:limit], "metadata": found["metadata"] | {"continue": token}}
        return web.json_response(found, status=status)

    async def _ask(
        self, method: str, url: str, body: bytes = b"", content: str = "application/json"
    ) -> tuple[int, bytes]:
        headers = {"Content-Type": content}
        async with self._session.request(method, url, data=body or None, headers=headers) as answer:
            return answer.status, self._told(await answer.read())

    async def _object(self, path: str) -> tuple[int, Json | None]:
        """As it is stored now; None when there is none."""
        async with self._session.get(self._upstream + path) as answer:
            return answer.status, _without_null(json.loads(await answer.read())) if answer.status == 200 else None

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        since = int(request.query.get("resourceVersion") or 0)
        watched, position = self._watched[request.path], 0
        lines = web.StreamResponse(headers={"Content-Type": "application/json"})
        await lines.prepare(request)
        if since < self._oldest:
            await lines.write(b'{"type":"ERROR","object":%s}\n' % _failure(410, "Expired"))
            return lines
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
        text = json.dumps(_corrected(_without_null(json.loads(text)))).encode()
        text = _scaled(text, lambda version: _SCALE * version)
        self._newest = max([self._newest, *(int(found[2]) for found in _VERSION.finditer(text))])
        return text


def _corrected(value: Any) -> Any:
    if isinstance(value, list):
        return [_corrected(each) for each in value]
    if not isinstance(value, dict):
        return value
    corrected = {key: _corrected(each) for key, each in value.items()}
    if "deletionTimestamp" in corrected and "generation" in corrected:
        corrected["generation"] += 1
    return corrected


def _without_null(value: Any) -> Any:
    """The emulator stores null where a cluster-scoped object has no namespace, and so on."""
    if isinstance(value, list):
        return [_without_null(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {key: _without_null(each) for key, each in value.items() if each is not None}


def _merged(value: Any, patch: Any) -> Any:
    """RFC 7386, section 2."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(value) if isinstance(value, dict) else {}
    for key, each in patch.items():
        if each is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), each)
    return merged


def _object_of(path: str) -> str:
    return path.removesuffix("/status")


def _failure(code: int, reason: str) -> bytes:
    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "reason": reason}
    return json.dumps(status).encode()


def _json(status: int, text: bytes) -> web.Response:
    return web.Response(status=status, body=text, content_type="application/json")


def _scaled(text: bytes, by: Callable[[int], int]) -> bytes:
    return _VERSION.sub(lambda found: found[1] + str(by(int(found[2]))).encode() + found[3], text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("upstream")
    parser.add_argument("watched", nargs="*", help="paths")
    given = parser.parse_args()
    asyncio.run(Bridge(given.upstream, given.watched).run(given.port))
