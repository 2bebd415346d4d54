"""Between model and agent: sends calls, kills, writes and reads data, and keeps the worlds that are still possible.

After calls that overlapped, or were cut off, there may be several; every later answer leaves those that admit it. When
none is left, the agent has done what no order of the calls explains.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc

from agent.csi.client import CallFailed, CsiClient
from agent.errors import QuarryError
from agent.nvmf import initiator
from tests.crash.machine import Machine, holdings
from tests.model.calls import Create, Delete, ListAll, Publish, Unpublish
from tests.model.snapshot_calls import CreateSnapshot, DeleteSnapshot, ListSnapshots
from tests.model.world import MODES, NODE, Answer, Call, Setting, World, after, maybe_after, merged

CLIENTS = 4
PATIENCE_S = 30.0
BLOCK = 4096
_UNANSWERED = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}


class Driver:
    """Drives one agent. `worlds` is never empty."""

    def __init__(self, machine: Machine, setting: Setting) -> None:
        self.machine = machine
        self.setting = setting
        self.worlds: frozenset[World] = frozenset({World()})
        self.clients = [CsiClient(machine.endpoint, timeout_s=PATIENCE_S) for _ in range(CLIENTS)]
        self.snapshot_ids: dict[str, str] = {}
        self.contexts: dict[str, dict[str, str]] = {}
        self.crossed: set[str] = set()
        """Names in calls that overlapped: which of their publish contexts came last is not known."""
        self.counts: dict[str, int] = {}

    async def close(self) -> None:
        for client in self.clients:
            await client.close()

    # --- calls -----------------------------------------------------------------------------------------------

    async def one(self, call: Call) -> Answer:
        """A call on its own: only a definite answer will do."""
        call = call.bound(self.snapshot_ids)
        answer = await self._send(call, self.clients[0])
        self._keep((after(call, world, self.setting, answer) for world in self.worlds), [(call, answer)])
        return answer

    async def again(self, call: Call, first: Answer) -> None:
        """The same call once more: the same answer, to the byte."""
        second = await self.one(call)
        same = second.code is first.code and _serialized(second) == _serialized(first)
        assert same, f"{call}: {first}\nrepeated: {second}"

    async def together(self, calls: Sequence[Call]) -> None:
        """Calls that overlap, each from a client of its own; one that is told to ask again did nothing."""
        calls = [call.bound(self.snapshot_ids) for call in calls]
        self._explain(calls, await asyncio.gather(*self._sent(calls)))

    async def together_until_killed(self, calls: Sequence[Call], delay_s: float, victims: str) -> None:
        """Calls that overlap with the death of the agent (and the target); callers repeat those cut off."""
        calls = [call.bound(self.snapshot_ids) for call in calls]
        sent = self._sent(calls)
        await asyncio.sleep(delay_s)
        await self.kill(victims)
        answers = await asyncio.gather(*sent)
        self._explain(calls, answers)
        for call, answer in zip(calls, answers, strict=True):
            if answer.code is None:
                await self.one(call)

    async def kill(self, victims: str) -> None:
        """SIGKILL, and start again; returns when the target serves."""
        self._count(f"kill {victims}")
        self.machine.kill_agent()
        if victims == "both":
            self.machine.target.kill()
            await asyncio.to_thread(self.machine.target.start)
        self.machine.start_agent()
        await self.wait_ready()

    async def wait_ready(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                if await self.clients[0].probe():
                    return
            except CallFailed as error:
                if error.code not in _UNANSWERED:
                    raise
            dead = self.machine.agent is not None and self.machine.agent.poll() is not None
            assert not dead and time.monotonic() < deadline, f"no agent:\n{self.machine.agent_log()[-3000:]}"
            await asyncio.sleep(0.02)

    async def look_closer(self) -> None:
        """Ask what the listings do not tell: calls that change nothing in one world, and are refused in the others."""
        for name in [each.name for each in self._any().volumes]:
            found = [volume for world in self.worlds if (volume := world.get(name))]
            for made in {(each.size, each.parameters, each.source) for each in found} if len(found) > 1 else ():
                size, parameters, source = made
                await self.one(Create(name, size, size, parameters, source))
            ways = {each.attached for each in found if each.attached}
            for way in ways if len(ways) > 1 or name in self.crossed else ():
                await self.one(Publish(name, NODE, MODES[way.mode], way.readonly))
        self.crossed.clear()

    # --- data ------------------------------------------------------------------------------------------------

    async def write(self, name: str, offset: int, text: str) -> None:
        """As the host the volume is published to; flushed, so it must survive everything from here on."""
        volume = self._any().get(name)
        if volume is None or not volume.attached or offset + BLOCK > volume.size:
            return
        async with self._host(name) as host:
            await host.write(1, offset, pattern(f"{name}|{text}"))
            await host.flush(1)
        self.worlds = frozenset(_written(world, name, offset, f"{name}|{text}") for world in self.worlds)
        self._count("write")

    async def read(self, name: str, offsets: Iterable[int]) -> None:
        """Every block has what was written to this volume there, or zeroes."""
        volume = self._any().get(name)
        if volume is None or not volume.attached:
            self._count("nothing to read")
            return
        found = {}
        async with self._host(name) as host:
            for offset in [*offsets, volume.size - BLOCK]:
                if offset + BLOCK <= volume.size:
                    found[offset] = await host.read(1, offset, BLOCK)
        left = frozenset(world for world in self.worlds if _reads_as(world, name, found))
        shown = {offset: block[:80] for offset, block in found.items() if block != bytes(BLOCK)}
        assert left, f"{name} reads as {shown} in\n" + "\n".join(map(str, self.worlds))
        self.worlds = left
        self._count("read")

    async def knock(self, name: str) -> None:
        """A host that the volume is not published to, and any host of a volume that is not published, stays out."""
        volume = self._any().get(name)
        published = volume is not None and volume.attached is not None
        context = self.contexts.get(name)
        if context is None:
            return
        strangers = ["nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-00000000beef"]
        if not published:
            strangers.append(context["hostNqn"])
        for stranger in strangers:
            try:
                host = await self._connect(context, stranger)
            except (QuarryError, OSError):
                continue
            await host.close()
            raise AssertionError(f"{stranger} was let in to {name}, published: {published}")
        self._count("knock")

    @asynccontextmanager
    async def _host(self, name: str) -> AsyncIterator[initiator.Controller]:
        context = self.contexts[name]
        host = await self._connect(context, context["hostNqn"])
        try:
            namespaces = [each.uuid for each in await host.namespaces()]
            assert namespaces == [context["uuid"]], f"{name}: {namespaces} behind {context}"
            yield host
        finally:
            await host.close()

    @staticmethod
    async def _connect(context: Mapping[str, str], host_nqn: str) -> initiator.Controller:
        address, port = context["address"], int(context["port"])
        return await initiator.connect(address, port, context["nqn"], host_nqn, initiator.Options(timeout_s=10))

    # --- the balance -----------------------------------------------------------------------------------------

    async def audit(self) -> None:
        """The target holds what the model says, neither more nor less."""
        world = self._any()
        found = await holdings(self.machine.target.socket_path)
        ids = sorted(self.setting.id_of(each.name) for each in world.volumes)
        lvols = [each for each in found.lvols if not each.startswith("snap-")]
        assert lvols == ids, f"lvols {lvols} for volumes {ids}"
        missing = {each.id for each in world.snapshots} - set(found.lvols)
        assert not missing, f"snapshots {missing} are not in {found.lvols}"
        assert sorted(found.exports) == ids, f"subsystems {sorted(found.exports)} for volumes {ids}"
        opened = {volume for volume, hosts in found.exports.items() if hosts}
        assert opened == {self.setting.id_of(each.name) for each in world.volumes if each.attached}
        self._count("audit")

    async def delete_everything(self, *, snapshots_last: bool) -> None:
        """Back to nothing, by the calls that a caller has."""
        world = self._any()
        snapshots: list[Call] = [DeleteSnapshot(each.name) for each in world.snapshots]
        volumes: list[Call] = [Delete(each.name) for each in world.volumes]
        for volume in world.volumes:
            await self.one(Unpublish(volume.name, ""))
        for call in [*volumes, *snapshots] if snapshots_last else [*snapshots, *volumes]:
            await self.one(call)
        assert not self._any().volumes
        assert not self._any().snapshots

    # --- inside ----------------------------------------------------------------------------------------------

    def _any(self) -> World:
        """One of the worlds: after a listing they agree on what there is, its sizes, and what is published."""
        return next(iter(self.worlds))

    def _sent(self, calls: Sequence[Call]) -> list[asyncio.Task[Answer]]:
        return [
            asyncio.create_task(self._send(each, client)) for each, client in zip(calls, self.clients, strict=False)
        ]

    def _explain(self, calls: Sequence[Call], answers: Sequence[Answer]) -> None:
        self.crossed |= {call.name for call in calls if isinstance(call, Create | Delete | Publish)}
        done = list(zip(calls, answers, strict=True))
        effective = [(call, answer) for call, answer in done if answer.code is not grpc.StatusCode.ABORTED]
        self._keep((self._in_any_order(world, effective) for world in self.worlds), done)

    async def _send(self, call: Call, client: CsiClient) -> Answer:
        self._count(type(call).__name__)
        try:
            response = await self._response(call, client)
        except CallFailed as error:
            return Answer(None if error.code in _UNANSWERED else error.code, details=error.details)
        if isinstance(call, Publish) and response.publish_context:
            self.contexts[call.name] = dict(response.publish_context)
        if isinstance(call, CreateSnapshot):
            self.snapshot_ids[call.name] = response.snapshot.snapshot_id
        return Answer(grpc.StatusCode.OK, response)

    async def _response(self, call: Call, client: CsiClient) -> Any:
        response = await client.call(call.method, call.request(self.setting))
        if isinstance(call, ListAll | ListSnapshots) and call.page:
            last = response
            while last.next_token:
                assert len(last.entries) == call.page, "a page that is not full, and not the last"
                request = type(call.request(self.setting))()
                request.CopyFrom(call.request(self.setting))
                request.starting_token = last.next_token
                last = await client.call(call.method, request)
                response.entries.extend(last.entries)
            response.next_token = ""
        return response

    def _in_any_order(self, world: World, done: Sequence[tuple[Call, Answer]]) -> Iterator[World]:
        for order in itertools.permutations(done):
            possible = {world}
            for call, answer in order:
                step = maybe_after if answer.code is None else partial(after, answer=answer)
                possible = {each for before in possible for each in step(call, before, self.setting)}
            yield from possible

    def _keep(self, worlds: Iterable[Iterable[World]], done: Sequence[tuple[Call, Answer]]) -> None:
        left = frozenset(itertools.chain.from_iterable(worlds))
        if not left:
            said = "\n".join(f"  {call}: {answer}" for call, answer in done)
            before = "\n".join(f"  {world}" for world in self.worlds)
            raise AssertionError(f"no order of these calls explains\n{said}\nin any of\n{before}")
        self.worlds = merged(left)

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1


def _written(world: World, name: str, offset: int, text: str) -> World:
    volume = world.get(name)
    return world.having(volume.written(offset, text)) if volume else world


def _reads_as(world: World, name: str, found: Mapping[int, bytes]) -> bool:
    volume = world.get(name)
    data = dict(volume.data) if volume else {}
    return all(block == (pattern(data[at]) if at in data else bytes(BLOCK)) for at, block in found.items())


def pattern(text: str) -> bytes:
    """A block that says who wrote what."""
    return f"{text}|".encode().ljust(BLOCK, b"#")


def _serialized(answer: Answer) -> bytes:
    return answer.response.SerializeToString(deterministic=True) if answer.response is not None else b""
