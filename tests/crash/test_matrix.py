"""The crash matrix: the agent is killed before and after each SPDK call, store write, program and note of an operation.

For each point: drive a new volume to the state before the operation, lay the wire, make the call, start the agent
again, and repeat the call (or make its opposite) until it is answered. What is there then, in the target, the store and
this machine, must be what it is without a kill; and when all is taken back, what it was at the beginning.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from agent.csi.client import CallFailed
from agent.spdk.client import Client

from . import landscape
from .cases import parameters
from .landscape import Landscape, View, filled, loosened, whole
from .subject import TICK_S, Subject, again, ready
from .trial import Call, Case, Trial
from .tripwire import RUN, Phase

SPDK = "call"
SETTLING_S = 5.0
"""How long what is tidied up in the background may take after a restart."""

STEADY_S = 0.1
"""What did not change for that long has settled; used for the runs without a kill."""


@dataclass(frozen=True)
class Point:
    """A moment to die: at thing `number` of those that pass the gate (SPDK calls) or trip the wire (all else)."""

    where: str
    number: int
    label: str
    phase: Phase

    def __str__(self) -> str:
        return f"{self.phase.name.lower()} {self.label} ({self.where} {self.number})"


@dataclass(frozen=True)
class Undisturbed:
    """The operation without a kill: what lasted at the beginning, before and after it, and where it can be cut."""

    clean: Landscape
    before: Landscape
    after: Landscape
    points: tuple[Point, ...]


class NeverReached(Exception):
    """The operation was over and the agent lived."""


class Matrix:
    """One case on one subject."""

    def __init__(self, subject: Subject, case: Case, target: Client) -> None:
        self.subject = subject
        self.case = case
        self.target = target

    def trial(self) -> Trial:
        self.subject.trials += 1
        return Trial(self.subject, self.case, self.subject.trials)

    async def look(self, trial: Trial) -> Landscape:
        return await landscape.read(self.subject, self.target, trial.csi, trial.names())

    async def same(self, when: str, expected: Landscape, trial: Trial, view: View = filled) -> None:
        """Return when `view` of what there is equals that of `expected`; what is tidied up meanwhile is waited for."""
        deadline = time.monotonic() + SETTLING_S
        while True:
            lines = landscape.difference(view(expected), view(await self.look(trial)))
            if not lines:
                return
            assert time.monotonic() < deadline, f"{when}:\n" + "\n".join(f"    {line}" for line in lines)
            await asyncio.sleep(TICK_S)

    async def steady(self, trial: Trial) -> Landscape:
        """What there is once nothing changes any more."""
        last, found = None, await self.look(trial)
        while found != last:
            await asyncio.sleep(STEADY_S)
            last, found = found, await self.look(trial)
        return found

    async def undisturbed(self) -> Undisturbed:
        """Run the operation once, counting."""
        trial = self.trial()
        async with self.subject.client() as trial.csi:
            await ready(trial.csi)
            clean = await self.look(trial)
            await make(trial, self.case.before)
            before = await self.steady(trial)
            self.arm(None)
            await self.case.call(trial)
            after = await self.steady(trial)
            points = self.passed()
            missed = set(self.case.crosses) - {word for point in points for word in (point.where, *point.label.split())}
            assert not missed, f"nobody saw the operation pass {', '.join(missed)}: the matrix is blind"
            await self.finish(trial, clean)
        return Undisturbed(clean, before, after, points)

    def arm(self, point: Point | None) -> None:
        here = (point.number, point.phase) if point else (0, Phase.BEFORE)
        self.subject.gate.arm(*(here if point and point.where == SPDK else (0, Phase.BEFORE)))
        self.subject.wire.arm(*(here if point and point.where != SPDK else (0, Phase.BEFORE)))

    def passed(self) -> tuple[Point, ...]:
        calls, things = self.subject.gate.passed, self.subject.wire.passed()
        self.disarm()
        points = [
            Point(SPDK, number, label, phase)
            for number, label in enumerate(calls, 1)
            for phase in (Phase.BEFORE, Phase.AFTER)
        ]
        for number, label in enumerate(things, 1):
            phases = tuple(Phase) if label.startswith(RUN) else (Phase.BEFORE, Phase.AFTER)
            points += [Point("thing", number, label, phase) for phase in phases]
        return tuple(points)

    def disarm(self) -> None:
        self.subject.gate.disarm()
        self.subject.wire.disarm()

    async def die(self, point: Point, normal: Undisturbed) -> Trial:
        """Bring a new volume to the point and kill the agent there; an agent lives again afterwards."""
        trial = self.trial()
        async with self.subject.client() as trial.csi:
            await ready(trial.csi)
            await make(trial, self.case.before)
            await self.same("before the call", normal.before, trial)
            self.arm(point)
            error = None
            try:
                await self.case.call(trial)
            except CallFailed as failed:
                error = failed
            try:
                await self.subject.wait_dead(SETTLING_S)  # what is done in the background can be the end, too
            except TimeoutError:
                self.disarm()
                raise NeverReached(f"the point was never reached; the call: {error or 'answered'}") from error
        self.disarm()
        await self.subject.gate.drained()
        self.subject.start_agent()
        return trial

    async def repeated(self, point: Point, normal: Undisturbed) -> None:
        """The caller repeats the call."""
        trial = await self.die(point, normal)
        async with self.subject.client() as trial.csi:
            await again(self.case.call, trial)
            await ready(trial.csi)
            await self.same("after the repeated call", normal.after, trial)
            if self.case.check is not None:
                await self.case.check(trial)
            await self.finish(trial, normal.clean)

    async def taken_back(self, point: Point, normal: Undisturbed) -> None:
        """The caller gives up and makes the opposite call instead, and the call once more later."""
        if self.case.opposite is None:
            raise ValueError(f"{self.case.name} cannot be taken back")
        trial = await self.die(point, normal)
        async with self.subject.client() as trial.csi:
            await again(self.case.opposite, trial)
            await ready(trial.csi)
            await self.same("after the opposite call", normal.before, trial, loosened)
            await again(self.case.call, trial)
            await self.same("after the call that follows its opposite", normal.after, trial)
            await self.finish(trial, normal.clean)

    async def finish(self, trial: Trial, clean: Landscape) -> None:
        """Take all back. Notes of what is no more go with the next start at the latest."""
        await make(trial, self.case.after)
        left = (await self.look(trial))["host"]["files"]
        if left != clean["host"]["files"]:
            await self.subject.kill_agent()
            self.subject.start_agent()
            async with self.subject.client() as trial.csi:
                await ready(trial.csi)
                await self.same("after taking all back", clean, trial, whole)
        else:
            await self.same("after taking all back", clean, trial, whole)


async def make(trial: Trial, calls: tuple[Call, ...]) -> None:
    for call in calls:
        await again(call, trial)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", parameters())
async def test_matrix(case: Case, subject: Subject, tried: Callable[[str, int, int], None]) -> None:
    if reason := case.skip_reason(subject.kind):
        pytest.skip(reason)
    failures: list[str] = []
    runs = 0
    subject.dirty = True
    async with subject.serving(), Client(subject.target.socket_path, call_timeout_s=30) as target:
        await target.wait_connected(30)
        matrix = Matrix(subject, case, target)
        first = await matrix.undisturbed()  # makes folders that stay
        normal = await matrix.undisturbed()
        unstable = landscape.difference(filled(first.after), filled(normal.after))
        assert not unstable, "\n".join(unstable)
        for point in normal.points:
            for variant in (matrix.repeated, matrix.taken_back) if case.opposite else (matrix.repeated,):
                try:
                    async with asyncio.timeout(60):
                        await variant(point, normal)
                except Exception as error:  # noqa: BLE001 - every point is tried and told
                    failures.append(f"{variant.__name__} {point}: {type(error).__name__}: {error}")
                    break
                runs += 1
            if failures:
                break
    subject.dirty = bool(failures)
    tried(case.name, len(normal.points), runs)
    assert not failures, "\n".join(failures) + "\n" + subject.log()[-6000:]
