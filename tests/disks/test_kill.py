"""The agent is killed around every call to the target, store write and program of a claim and of a release."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from agent.errors import Conflict
from agent.model import Disk, DiskPhase
from agent.spdk import bdev, lvol
from agent.spdk.client import Client
from agent.store.local import LocalStore, open_local
from tests.contract.targets import find_spdk_tgt
from tests.crash.subject import CONFIG, Subject, ready
from tests.crash.tripwire import Phase
from tests.disks.loops import LoopDisk

PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    if find_spdk_tgt() is None:
        pytest.skip("spdk_tgt not found: block devices need the real one")
    subject = Subject("real")
    (subject.folder / "config.yaml").write_text(CONFIG + "disks: {loop_devices: true}\n")
    subject.start()
    yield subject
    subject.close()


class Trial:
    """One disk of one agent, as another process sees it."""

    def __init__(self, subject: Subject, loop: LoopDisk, store: LocalStore) -> None:
        self.subject = subject
        self.loop = loop
        self.store = store

    async def until(self, wanted: Callable[[Disk], bool]) -> Disk:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found = [each for each in await self.store.list(Disk) if each.status.serial == str(self.loop.file)]
            if found and wanted(found[0]):
                return found[0]
            assert time.monotonic() < deadline, f"{found}\n{self.subject.log()[-3000:]}"
            await asyncio.sleep(0.01)

    async def want(self, claimed: bool) -> None:
        while True:
            disk = await self.until(lambda disk: True)
            try:
                await self.store.update(replace(disk, spec=replace(disk.spec, claimed=claimed)))
            except Conflict:
                continue
            return

    async def restart(self) -> None:
        await self.subject.gate.drained()
        self.subject.start_agent()
        async with self.subject.client() as csi:
            await ready(csi)

    async def check(self, claimed: bool) -> None:
        """Return when the disk is as wanted, here and in the target."""
        disk = await self.until(is_claimed if claimed else is_released)
        async with Client(self.subject.target.socket_path) as rpc:
            await rpc.wait_connected(5)
            base, pool = await asyncio.gather(bdev.get(rpc, disk.bdev_name), lvol.get_lvstore(rpc, disk.pool_name))
        if claimed:
            assert base is not None
            assert pool is not None
            assert pool.uuid == disk.status.pool.uuid
        else:
            assert (base, pool) == (None, None)
            assert self.loop.is_blank()


def is_claimed(disk: Disk) -> bool:
    return disk.status.phase is DiskPhase.READY and bool(disk.status.pool.uuid)


def is_released(disk: Disk) -> bool:
    return disk.status.phase is DiskPhase.AVAILABLE and not disk.status.pool.uuid and disk.status.eligible


@asynccontextmanager
async def trial(subject: Subject, loop: LoopDisk) -> AsyncIterator[Trial]:
    async with subject.serving(), subject.client() as csi:
        await ready(csi)
        store = await open_local(subject.state_dir / "quarry.db")
        try:
            yield Trial(subject, loop, store)
        finally:
            await store.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("claimed", [True, False], ids=["claim", "release"])
async def test_claims_and_releases_end_as_wanted_wherever_the_agent_dies(
    subject: Subject, make_disk: Callable[..., LoopDisk], claimed: bool
) -> None:
    loop = make_disk(f"claimed-{claimed}", 1100 << 20)
    async with trial(subject, loop) as here:
        await here.until(lambda disk: disk.status.eligible)
        if not claimed:
            await here.want(True)
            await here.check(True)
        subject.gate.arm()
        subject.wire.arm()
        await here.want(claimed)
        await here.check(claimed)
        calls, others = list(subject.gate.passed), subject.wire.passed()
        assert any("commit" in label for label in others)
        points = [
            ("call", number, phase) for number in range(1, len(calls) + 1) for phase in (Phase.BEFORE, Phase.AFTER)
        ]
        points += [("other", number, phase) for number in range(1, len(others) + 1) for phase in Phase]
        kills = 0
        for where, number, phase in points:
            subject.gate.disarm()
            subject.wire.disarm()
            await here.want(not claimed)
            await here.check(not claimed)
            subject.gate.arm(*((number, phase) if where == "call" else (0, Phase.BEFORE)))
            subject.wire.arm(*((number, phase) if where == "other" else (0, Phase.BEFORE)))
            await here.want(claimed)
            deadline = time.monotonic() + PATIENCE_S
            while subject.alive and not done(await here.until(lambda disk: True), claimed):
                assert time.monotonic() < deadline, f"{where} {number} {phase}"
                await asyncio.sleep(0.01)
            if not subject.alive:
                kills += 1
                subject.gate.disarm()
                subject.wire.disarm()
                await here.restart()
            await here.check(claimed)
        print(f"{len(calls)} calls, {len(others)} others, {len(points)} points, {kills} kills: {calls} {others}")
        assert kills > len(points) // 3


def done(disk: Disk, claimed: bool) -> bool:
    return is_claimed(disk) if claimed else is_released(disk)
