"""A campaign: so many requests, many in flight, to one agent; then everything is deleted and the balance is drawn."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from agent.csi.client import CallFailed
from agent.csi.pb import csi_pb2 as csi
from tests.crash.machine import REPEAT, Patient
from tests.fuzz import wire
from tests.fuzz.generate import SECRET_MARK, Generator
from tests.fuzz.lifecycle import Lifecycle, Scene
from tests.fuzz.services import BY_NAME, METHODS, Method
from tests.fuzz.subject import Subject

IN_FLIGHT = 64
CALL_TIMEOUT_S = 60.0
NEVER = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""Codes that no request may get from an agent whose target serves."""

_CLEAN_EVERY = 2500


@dataclass(frozen=True)
class Shot:
    """One request as it goes out: `origin` tells how it was made; `patience_s`, after which it is given up."""

    method: Method
    raw: bytes
    origin: str
    patience_s: float = CALL_TIMEOUT_S


@dataclass
class Tally:
    """What was answered, by method and code, and what should not have been."""

    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    origins: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def total(self) -> int:
        return sum(self.answers.values())

    def table(self) -> str:
        """Methods by row, codes by column."""
        codes = sorted({code for _, code in self.answers})
        methods = sorted({method for method, _ in self.answers})
        width = max(map(len, methods), default=0)
        lines = [" " * width + "".join(f" {code[:12]:>12}" for code in codes)]
        for method in methods:
            lines.append(f"{method:<{width}}" + "".join(f" {self.answers[method, code] or '':>12}" for code in codes))
        origins = ", ".join(f"{count} {origin}" for origin, count in sorted(self.origins.items()))
        lines.append(f"{self.total} requests in {self.seconds:.1f} s ({origins}), {len(self.bad)} bad answers")
        return "\n".join(lines)


class Aim:
    """Makes shots: valid, mutated and random messages, and broken bytes. Seeded."""

    def __init__(self, rng: random.Random, scene: Scene) -> None:
        self._rng = rng
        self._generator = Generator(rng, scene.vocabulary())
        self._lifecycle = Lifecycle(rng, scene)
        self._known = [method for method in METHODS if self._lifecycle.request(method.name) is not None]

    def shot(self) -> Shot:
        """The next request."""
        rng = self._rng
        patience_s = rng.choice((0.0005, 0.005, 0.05)) if rng.random() < 0.02 else CALL_TIMEOUT_S
        draw = rng.random()
        if draw < 0.25:
            name, request = self._lifecycle.step()
            return Shot(BY_NAME[name], request.SerializeToString(), "valid", patience_s)
        method = rng.choice(METHODS if draw < 0.6 else self._known)
        start = self._lifecycle.request(method.name)
        if draw < 0.6 or start is None:
            raw = self._generator.message(method.request).SerializeToString()
            return Shot(method, raw, "random", patience_s)
        if draw < 0.8:
            return Shot(method, self._generator.mutated(start).SerializeToString(), "mutated", patience_s)
        return Shot(method, self._broken(rng.choice((method, rng.choice(METHODS)))), "bytes", patience_s)

    def _broken(self, method: Method) -> bytes:
        start = self._lifecycle.request(method.name) or self._generator.message(method.request)
        other = self._lifecycle.request("Controller/CreateVolume")
        assert other is not None
        # Broken bytes may move a secret into a field that is none, where it may be shown.
        mark, none = SECRET_MARK.encode(), b"no-secret-at-all"
        raw, spliced = (each.SerializeToString().replace(mark, none) for each in (start, other))
        if self._rng.random() < 0.001:
            return raw + b"\x0a" + bytes([0x80, 0x80, 0xC0, 0x02]) + bytes(5 << 20)  # more than gRPC takes
        return wire.mutated(raw, spliced, self._rng)


class Campaign:
    """Runs shots against `subject` and tidies up; `close` ends the connections."""

    def __init__(self, subject: Subject, scene: Scene, seed: int) -> None:
        self.subject = subject
        self.scene = scene
        self.patient = Patient(subject.endpoint)
        self._rng = random.Random(seed)
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        self._channels = [grpc.aio.insecure_channel(subject.endpoint, options=options) for _ in range(4)]
        self.tally = Tally()
        self._open: dict[str, Message] = {}
        """Snapshots that may have been begun, by name: a caller asks for them again until it knows."""

    async def close(self) -> None:
        await self.patient.close()
        for channel in self._channels:
            await channel.close(None)

    async def prepare(self) -> None:
        """Learn the ids and tokens of this scene: the same name has the same id every time."""
        await self.patient.wait_ready()
        lifecycle = Lifecycle(random.Random(0), self.scene)
        call = self.patient.client.call
        for name in self.scene.names:
            request = lifecycle.create(name)
            request.ClearField("volume_content_source")
            self.scene.ids[name] = (await call("Controller/CreateVolume", request)).volume.volume_id
        for name, _ in zip(self.scene.names, self.scene.snapshot_names, strict=False):
            request = lifecycle.create_snapshot(name)
            made = await call("Controller/CreateSnapshot", request)
            self.scene.snapshot_ids[request.name] = made.snapshot.snapshot_id
        for name in self.scene.group_names:
            group = await self.patient.client.create_group(name, list(self.scene.ids.values())[:2])
            self.scene.group_ids[name] = group.group_snapshot_id
        page = await self.patient.client.list_volumes(1)
        self.scene.tokens.append(page.next_token)
        await self.tidy()

    async def run(self, count: int) -> None:
        """Fire `count` requests, tidying up now and then so that there is room to create."""
        aim = Aim(self._rng, self.scene)
        for start in range(0, count, _CLEAN_EVERY):
            shots = [aim.shot() for _ in range(min(_CLEAN_EVERY, count - start))]
            started = time.monotonic()
            await self._volley(shots)
            self.tally.seconds += time.monotonic() - started
            await self._disturb()
            await self.tidy()

    async def tidy(self) -> None:
        """Delete everything that was validly made, as an orchestrator would."""
        client = self.patient
        for mounted in self.subject.mounts():
            if not mounted.name.startswith("staging"):
                await self._node_unpublish(mounted)
        await self._finish_snapshots()
        volumes = [entry.volume.volume_id for entry in (await client.call("list_volumes")).entries]
        for volume in dict.fromkeys([*self.scene.ids.values(), *volumes]):
            staged = [str(each) for each in self.subject.mounts()]
            for staging in staged or self.scene.staging[:1]:
                await self._unstage(volume, staging)
            await client.call("unpublish", volume)
            await client.call("delete_volume", volume)
        snapshots = [entry.snapshot for entry in (await client.call("list_snapshots")).entries]
        for group in sorted({each.group_snapshot_id for each in snapshots} - {""}):
            await client.call("delete_group", group, [])
        for each in snapshots:
            await client.call("delete_snapshot", each.snapshot_id)

    # --- inside ----------------------------------------------------------------------------------------------

    async def _volley(self, shots: list[Shot]) -> None:
        slots = asyncio.Semaphore(IN_FLIGHT)

        async def fire(number: int, shot: Shot) -> None:
            async with slots:
                await self._fire(shot, number)

        async with asyncio.TaskGroup() as group:
            for number, shot in enumerate(shots):
                group.create_task(fire(number, shot))

    async def _finish_snapshots(self) -> None:
        for request in self._open.values():
            with contextlib.suppress(CallFailed):  # NOT_FOUND and the like are final
                await self.patient.call("call", "Controller/CreateSnapshot", request)
        self._open.clear()

    async def _node_unpublish(self, mounted: Path) -> None:
        """Whose it is was not written down: who asks for another volume is told, and leaves it alone by that."""
        volume = next(iter(self.scene.ids.values()))
        for _ in range(2):
            try:
                await self.patient.call("node_unpublish", volume, mounted)
            except CallFailed as error:
                # Or mounted over a folder with somebody's file in it, which comes to light again and stays.
                if error.code is not grpc.StatusCode.FAILED_PRECONDITION:
                    raise
                whose = re.search(r"of volume (vol-[0-9a-f]{32}) and not", error.details or "")
                volume = whose[1] if whose else volume
        assert mounted not in self.subject.mounts()

    async def _unstage(self, volume: str, staging: str) -> None:
        try:
            await self.patient.call("unstage", volume, staging)
        except CallFailed as error:
            if error.code is not grpc.StatusCode.FAILED_PRECONDITION:  # staged elsewhere: comes there
                raise

    async def _fire(self, shot: Shot, number: int) -> None:
        channel = self._channels[number % len(self._channels)]
        try:
            if shot.method.streams:
                stream = channel.unary_stream(shot.method.path, response_deserializer=shot.method.response.FromString)
                async for _ in stream(shot.raw, timeout=shot.patience_s):
                    pass
            else:
                call = channel.unary_unary(shot.method.path, response_deserializer=shot.method.response.FromString)
                await call(shot.raw, timeout=shot.patience_s)
            code, details = grpc.StatusCode.OK, ""
        except grpc.aio.AioRpcError as error:
            code, details = error.code(), error.details() or ""
        self._count(shot, code, details)

    def _count(self, shot: Shot, code: grpc.StatusCode, details: str) -> None:
        self.tally.answers[shot.method.name, code.name] += 1
        self.tally.origins[shot.origin] += 1
        if shot.method.name == "Controller/CreateSnapshot" and code in REPEAT:
            with contextlib.suppress(DecodeError):
                request = csi.CreateSnapshotRequest.FromString(shot.raw)
                self._open[request.name] = request
        given_up = shot.patience_s < CALL_TIMEOUT_S and code is grpc.StatusCode.DEADLINE_EXCEEDED
        unsaid = code is not grpc.StatusCode.OK and not details
        leaks = SECRET_MARK in details and shot.origin != "bytes"
        if (code in NEVER and not given_up) or unsaid or leaks:
            request = shot.method.request()
            try:
                request.ParseFromString(shot.raw)
                shown = str(request)
            except DecodeError:
                shown = shot.raw.hex()
            self.tally.bad.append(f"{shot.method.name} ({shot.origin}) {code.name}: {details}\n{shown[:2000]}")

    async def _disturb(self) -> None:
        """Bytes that are not even HTTP/2, and connections that go without a word."""
        path = self.subject.endpoint.removeprefix("unix://")
        for _ in range(5):
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(path)
                raw.send(
                    self._rng.choice((b"GET / HTTP/1.1\r\n\r\n", b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
                    + self._rng.randbytes(self._rng.choice((0, 9, 1000)))
                )
                await asyncio.sleep(0)
