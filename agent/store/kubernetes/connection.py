"""Requests to the Kubernetes API: one HTTP session with the official client's configuration, credentials and TLS.

The requests themselves are ours (docs/decisions/0007): raw JSON over aiohttp, for a third of the official
client's CPU time.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import msgspec

from agent.errors import DeadlineExceeded, FailedPrecondition, Unavailable
from agent.store.kubernetes.absence import Absence
from agent.store.kubernetes.kinds import MANAGER
from agent.store.kubernetes.refusals import Asked, is_for_later, refusal
from agent.tasks.background import Background

Json = dict[str, Any]

REQUEST_S = 15.0
"""How long one request may take, its repetitions included."""

IN_FLIGHT = 32
"""Requests at the same time; more only wait in the API server, which then answers 429."""

WATCH_SILENCE_S = 150.0
"""The API server sends bookmarks about every minute; a watch that is silent for longer is started anew."""

_PAUSE_S, _PAUSE_MAX_S = 0.05, 2.0
_ATTEMPT_S = 10.0
_LINE_MAX = 64 << 20

_NOT_REACHED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)

MERGE_PATCH = "application/merge-patch+json"

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Json)


async def connect(kubeconfig: Path | None = None) -> Connection:
    """With `kubeconfig`; else as the Pod's ServiceAccount; else as KUBECONFIG or ~/.kube/config says.

    Raises FailedPrecondition when there is no configuration, or one that cannot be used.
    """
    # Imported late: 0.3 s and 44 MiB that nobody pays who does not use a cluster.
    from kubernetes.aio import client, config

    configuration = client.Configuration()
    refreshing = Background()
    try:
        if kubeconfig is None and os.environ.get("KUBERNETES_SERVICE_HOST"):
            config.load_incluster_config(client_configuration=configuration)
        else:
            file = None if kubeconfig is None else str(kubeconfig)
            loader = await config.load_kube_config(file, client_configuration=configuration, persist_config=False)
            # Credentials that a program makes; it returns at once for all others.
            refreshing.once("kube-credentials", lambda: config.refresh_token(loader, configuration))
        tls = client.rest.RESTClientObject(configuration).ssl_context
    except (config.ConfigException, OSError) as error:
        raise FailedPrecondition(f"no usable configuration for the Kubernetes API: {error}") from error
    configuration.proxy = configuration.proxy or _proxy_of_environment(configuration.host)
    # Not trust_env: it looks for a .netrc file and for proxies in two threads at every request.
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, ssl=tls), read_bufsize=1 << 20)
    return Connection(configuration, session, refreshing)


def _proxy_of_environment(server: str) -> str | None:
    """HTTPS_PROXY and the like, unless NO_PROXY excepts the server."""
    url = urlsplit(server)
    return None if proxy_bypass(url.netloc) else getproxies().get(url.scheme)


class Connection:
    """Sends requests; decides what may be sent again."""

    def __init__(self, configuration: Any, session: aiohttp.ClientSession, refreshing: Background) -> None:
        self._configuration = configuration
        self._session = session
        self._refreshing = refreshing
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self._quiet_until = 0.0
        """The API server has asked for a pause until then, on the loop's clock."""
        self._absence = Absence()
        self.sent: Counter[tuple[str, str]] = Counter()
        """Requests sent, watches and repetitions included, by kind (with its subresource) and verb."""

    @property
    def server(self) -> str:
        return str(self._configuration.host)

    async def request(
        self,
        method: str,
        path: str,
        asked: Asked,
        *,
        body: Json | None = None,
        content: str = "application/json",
        urgent: bool = False,
    ) -> Json:
        """The answer's JSON. Raises what `refusal` makes of a refused request. `urgent`: it waits for no other.

        Sent again, until REQUEST_S: what was not received, what the server asks to send later, and reads. Any other
        request whose answer is lost raises Unavailable or DeadlineExceeded: it may have happened.
        """
        data = None if body is None else _ENCODER.encode(body)
        deadline = asyncio.get_running_loop().time() + REQUEST_S
        pause_s = _PAUSE_S
        failure: Exception | None = None
        while True:
            try:
                async with AsyncExitStack() as stack:
                    if not urgent and not await self._in_turn(stack, deadline):
                        raise self._unreachable(failure or self._absence.why) from failure
                    self.sent[_counted(method, path, asked)] += 1
                    status, headers, text = await self._send(method, path, data, content)
            except _NOT_REACHED as error:
                failure = error
                self._absence.begin(error)
                if not urgent:
                    continue
            except (TimeoutError, aiohttp.ClientError) as error:
                failure = error
                if not isinstance(error, TimeoutError):
                    self._absence.begin(error)
                if method != "GET":
                    raise self._lost(error, f"{method} {path}") from error
            else:
                self._absence.end()
                if status < 300:
                    return decode(text)
                failure = refusal(status, text, asked)
                if not is_for_later(status, headers, method):
                    raise failure
                pause_s = max(pause_s, self._told_to_wait(headers))
            pause_s = min(2 * pause_s, max(_PAUSE_MAX_S, pause_s))
            if asyncio.get_running_loop().time() + pause_s > deadline:
                raise self._unreachable(failure) from failure
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, keeps no secret

    async def _in_turn(self, turn: AsyncExitStack, deadline: float) -> bool:
        """Waits to be one of IN_FLIGHT and for the server to want requests; False when it is too late for that."""
        try:
            async with asyncio.timeout_at(deadline):
                await turn.enter_async_context(self._slots)
                await self._wait_for_quiet()
                await self._absence.wait()
        except TimeoutError:
            return False
        return True

    async def _send(
        self, method: str, path: str, data: bytes | None, content: str
    ) -> tuple[int, Mapping[str, str], bytes]:
        headers = await self._headers(content)
        timeout = aiohttp.ClientTimeout(total=_ATTEMPT_S, sock_connect=5.0)
        async with self._session.request(
            method, f"{self.server}{path}", data=data, headers=headers, timeout=timeout, **self._route()
        ) as answer:
            return answer.status, answer.headers, await answer.read()

    async def watch(self, path: str, asked: Asked) -> AsyncIterator[bytes]:
        """The events of a watch as they come, each as its JSON, until the server ends it.

        Raises like `request`, sends nothing again.
        """
        self.sent[asked.kind, "watch"] += 1
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=WATCH_SILENCE_S)
        headers = await self._headers("application/json")
        try:
            async with self._session.request(
                "GET", f"{self.server}{path}", headers=headers, timeout=timeout, **self._route()
            ) as answer:
                if answer.status >= 300:
                    raise refusal(answer.status, await answer.read(), asked)
                rest = b""
                async for chunk in answer.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n") if b"\n" in chunk else (rest + chunk,)
                    if len(rest) > _LINE_MAX:
                        raise Unavailable(f"{self.server}: an event of more than {_LINE_MAX} bytes")
                    for line in lines:
                        yield line
        except TimeoutError as error:
            raise Unavailable(f"{self.server}: a watch was silent for {WATCH_SILENCE_S:g} s") from error
        except aiohttp.ClientError as error:
            raise self._unreachable(error) from error

    async def _headers(self, content: str) -> dict[str, str]:
        headers = {"Accept": "application/json", "Content-Type": content, "User-Agent": MANAGER}
        token = await self._configuration.get_api_key_with_prefix("BearerToken", "authorization")
        if token:
            headers["Authorization"] = token
        return headers

    def _route(self) -> dict[str, Any]:
        route: dict[str, Any] = {}
        if self._configuration.tls_server_name:
            route["server_hostname"] = self._configuration.tls_server_name
        if self._configuration.proxy:
            route["proxy"] = self._configuration.proxy
        return route

    def _told_to_wait(self, headers: Mapping[str, str]) -> float:
        """Seconds of Retry-After; until then nobody sends anything."""
        told = headers.get("Retry-After", "")
        pause_s = min(float(told), REQUEST_S) if told.isdigit() else 0.0
        self._quiet_until = max(self._quiet_until, asyncio.get_running_loop().time() + pause_s)
        return pause_s

    async def _wait_for_quiet(self) -> None:
        left_s = self._quiet_until - asyncio.get_running_loop().time()
        if left_s > 0:
            await asyncio.sleep(left_s * random.uniform(1.0, 1.2))  # noqa: S311 - as above

    def _lost(self, error: Exception, asked: str) -> Unavailable | DeadlineExceeded:
        if isinstance(error, TimeoutError):
            return DeadlineExceeded(f"{self.server}: no answer to {asked} in {_ATTEMPT_S:g} s")
        return self._unreachable(error)

    def _unreachable(self, error: Exception | None) -> Unavailable:
        why = f"no turn in {REQUEST_S:g} s" if error is None else str(error) or type(error).__name__
        return Unavailable(f"the Kubernetes API at {self.server} cannot be used: {why}")

    async def close(self) -> None:
        await self._refreshing.stop()
        await self._session.close()


def _counted(method: str, path: str, asked: Asked) -> tuple[str, str]:
    """What is asked for, in the words of Kubernetes: kind and verb."""
    kind = f"{asked.kind}/status" if path.endswith("/status") else asked.kind
    return kind, _VERBS.get(method) or ("get" if asked.name else "list")


def decode(text: bytes) -> Json:
    """An answer's JSON. Raises Unavailable for what is none."""
    try:
        return _DECODER.decode(text)
    except msgspec.MsgspecError as error:
        raise Unavailable(f"the Kubernetes API answered with something that is not a JSON object: {error}") from error
