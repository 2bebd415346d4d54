"""The floor: the SPDK calls of each step and nothing else, pipelined over one connection; and the same calls one by
one through the official client. No state is kept, nothing is checked beyond "no error"."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Params = Mapping[str, Any]
Call = tuple[str, Params]

MIB = 1 << 20
HOST_NQN = "nqn.2014-08.org.nvmexpress:uuid:7d6c1a3e-0000-4000-8000-000000000001"
STEPS = ("create", "publish", "unpublish", "delete")


class RawClient(asyncio.Protocol):
    """The smallest pipelined JSON-RPC client: one line a request, one line an answer, matched by id."""

    def __init__(self) -> None:
        self._waiting: dict[int, _Answer] = {}
        self._next = 0
        self._rest = b""
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def connect(cls, socket: Path) -> RawClient:
        _, client = await asyncio.get_running_loop().create_unix_connection(cls, str(socket))
        return client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            future = self._waiting.pop(answer["id"])
            if "error" in answer:
                future.set_exception(RuntimeError(f"{future.method}: {answer['error']}"))
            else:
                future.set_result(answer["result"])

    def connection_lost(self, exc: Exception | None) -> None:
        for future in self._waiting.values():
            future.cancel()

    def call(self, method: str, params: Params | None = None) -> asyncio.Future[Any]:
        assert self._transport is not None
        self._next += 1
        future = _Answer(method)
        self._waiting[self._next] = future
        request: dict[str, Any] = {"jsonrpc": "2.0", "id": self._next, "method": method}
        if params:
            request["params"] = params
        self._transport.write(json.dumps(request).encode() + b"\n")
        return future

    async def round(self, calls: list[Call]) -> None:
        """One round: all calls go out together; returns when all are answered."""
        await asyncio.gather(*(self.call(method, params) for method, params in calls))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class _Answer(asyncio.Future[Any]):
    """A future that knows its method, for the error text."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method


@dataclass(frozen=True)
class Place:
    """Where the volumes of a run go."""

    lvs_name: str
    address: str
    port: int
    size_bytes: int

    def steps(self, name: str) -> dict[str, list[list[Call]]]:
        """The rounds of calls of each step in a volume's life."""
        nqn = f"nqn.2026-11.bench:{name}"
        return {
            "create": [self.lvol(name, nqn), [*self.export(name, nqn)]],
            "publish": [[("nvmf_subsystem_add_host", {"nqn": nqn, "host": HOST_NQN})]],
            "unpublish": [[("nvmf_subsystem_remove_host", {"nqn": nqn, "host": HOST_NQN})]],
            "delete": [
                [("nvmf_delete_subsystem", {"nqn": nqn}), ("bdev_lvol_delete", {"name": f"{self.lvs_name}/{name}"})]
            ],
        }

    def lvol(self, name: str, nqn: str) -> list[Call]:
        size = {"size_in_mib": self.size_bytes // MIB, "thin_provision": True, "clear_method": "none"}
        return [
            ("bdev_lvol_create", {"lvs_name": self.lvs_name, "lvol_name": name, **size}),
            self.subsystem(name, nqn),
        ]

    def subsystem(self, name: str, nqn: str) -> Call:
        limits = {"max_namespaces": 1, "ana_reporting": True}
        return "nvmf_create_subsystem", {"nqn": nqn, "serial_number": name[-20:], "model_number": "bench", **limits}

    def export(self, name: str, nqn: str) -> list[Call]:
        family = "IPv6" if ":" in self.address else "IPv4"
        listen = {"trtype": "TCP", "adrfam": family, "traddr": self.address, "trsvcid": str(self.port)}
        return [
            ("nvmf_subsystem_add_ns", {"nqn": nqn, "namespace": {"bdev_name": f"{self.lvs_name}/{name}"}}),
            ("nvmf_subsystem_add_listener", {"nqn": nqn, "listen_address": listen}),
        ]

    def minimal(self, name: str) -> list[list[Call]]:
        """The whole life in the fewest rounds: the host goes in with the namespace and the listener."""
        steps = self.steps(name)
        first, second = steps["create"]
        return [first, [*second, *steps["publish"][0]], steps["unpublish"][0], steps["delete"][0]]

    def rebuild(self, name: str) -> list[list[Call]]:
        """What a restarted target needs to serve the volume again."""
        nqn = f"nqn.2026-11.bench:{name}"
        return [[self.subsystem(name, nqn)], [*self.export(name, nqn), *self.steps(name)["publish"][0]]]


async def lives(rpc: RawClient, place: Place, names: list[str], callers: int) -> float:
    """Seconds for whole lives of `names`, `callers` at a time."""
    return await _pooled(rpc, [place.minimal(name) for name in names], callers)


async def rebuild(rpc: RawClient, place: Place, names: list[str], callers: int) -> float:
    """Seconds to export all of `names` again, `callers` at a time."""
    return await _pooled(rpc, [place.rebuild(name) for name in names], callers)


async def _pooled(rpc: RawClient, work: list[list[list[Call]]], callers: int) -> float:
    pending = iter(work)

    async def caller() -> None:
        for rounds in pending:
            for calls in rounds:
                await rpc.round(calls)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    return time.perf_counter() - started


async def steps(rpc: RawClient, place: Place, names: list[str]) -> dict[str, list[float]]:
    """Seconds of each step of each life, one life at a time, in as few rounds as the step allows."""
    taken: dict[str, list[float]] = {step: [] for step in STEPS}
    for name in names:
        for step, rounds in place.steps(name).items():
            started = time.perf_counter()
            for calls in rounds:
                await rpc.round(calls)
            taken[step].append(time.perf_counter() - started)
    return taken


def official_lives(socket: Path, place: Place, names: list[str]) -> dict[str, list[float]]:
    """Seconds of each step of each life, done call by call with the client of the `spdk` package. Blocks."""
    from spdk.rpc.client import JSONRPCClient

    client = JSONRPCClient(str(socket), timeout=60.0)
    taken: dict[str, list[float]] = {step: [] for step in STEPS}
    for name in names:
        for step, rounds in place.steps(name).items():
            started = time.perf_counter()
            for calls in rounds:
                for method, params in calls:
                    client.call(method, dict(params))
            taken[step].append(time.perf_counter() - started)
    client.close()
    return taken
