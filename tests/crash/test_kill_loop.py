"""Agent, target and both are killed at random points under a loop of operations: nothing lost, leaked or doubled."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from agent.errors import QuarryError
from agent.nvmf import initiator

from .machine import NODE, Machine, Patient, holdings

OPERATIONS = 200
WORKERS = 6
MIB = 1 << 20
SEED = int(os.environ.get("QUARRY_SEED", random.SystemRandom().randrange(1 << 30)))


@dataclass
class Expected:
    """What the orchestrator was told: volume ids by name, those published, and the bytes written to each."""

    volumes: dict[str, str] = field(default_factory=dict)
    published: dict[str, dict[str, str]] = field(default_factory=dict)
    written: dict[str, bytes] = field(default_factory=dict)


async def work(worker: int, csi: Patient, expected: Expected, rng: random.Random) -> None:
    """Create, publish, write, unpublish, delete; every third volume stays, every other of those published."""
    index = 0
    while csi.answered < OPERATIONS:
        name = f"pvc/{worker}.{index}"
        volume = await csi.call("create_volume", name, 16 * MIB, {"tier": "ssd"})
        expected.volumes[name] = volume
        context = await csi.call("publish", volume, NODE)
        expected.published[volume] = context
        kept = index % 3 == 0
        if kept:
            data = rng.randbytes(4096)
            if await write(context, data):
                expected.written[volume] = data
        if not kept or index % 2 == 0:
            await csi.call("unpublish", volume, NODE)
            del expected.published[volume]
        if not kept:
            await csi.call("delete_volume", volume)
            del expected.volumes[name]
        index += 1


async def write(context: dict[str, str], data: bytes) -> bool:
    """Write `data` to the volume's first block; whether it was confirmed before something was killed."""
    try:
        async with asyncio.timeout(5):
            async with connected(context) as host:
                await host.write(1, 0, data)
                await host.flush(1)
    except (OSError, TimeoutError, QuarryError):
        return False
    return True


@asynccontextmanager
async def connected(context: dict[str, str]) -> AsyncIterator[initiator.Controller]:
    options = initiator.Options(timeout_s=5)
    address, port = context["address"], int(context["port"])
    host = await initiator.connect(address, port, context["nqn"], context["hostNqn"], options)
    try:
        yield host
    finally:
        await host.close()


async def kill_at_random(machine: Machine, csi: Patient, rng: random.Random) -> dict[str, int]:
    """Kill something every few operations, at a moment that has nothing to do with where they are."""
    kills = {"agent": 0, "target": 0, "both": 0}
    while csi.answered < OPERATIONS:
        await csi.wait_answered(min(csi.answered + rng.randint(2, 12), OPERATIONS))
        await asyncio.sleep(rng.random() * 0.03)
        victim = rng.choice(list(kills))
        kills[victim] += 1
        if victim in ("agent", "both"):
            machine.kill_agent()
        if victim in ("target", "both"):
            machine.target.kill()
            await asyncio.to_thread(machine.target.start)
        if victim in ("agent", "both"):
            machine.start_agent()
    return kills


@pytest.mark.timeout(300)
async def test_everything_converges(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(SEED)
    machine.start_agent()
    csi, expected = Patient(machine.endpoint), Expected()
    await csi.wait_ready()
    csi.answered = 0
    try:
        async with asyncio.TaskGroup() as group:
            killer = group.create_task(kill_at_random(machine, csi, rng))
            for worker in range(WORKERS):
                group.create_task(work(worker, csi, expected, random.Random(f"{SEED}-{worker}")))
        await csi.wait_ready()
        await check_nothing_lost_leaked_or_doubled(machine, csi, expected)
        await check_data(csi, expected)
        for volume in expected.published:
            await csi.call("unpublish", volume)
        for volume in expected.volumes.values():
            await csi.call("delete_volume", volume)
        assert (await holdings(machine.target.socket_path)).lvols == []
        assert machine.stop_agent() == 0
    except BaseException:
        print(machine.agent_log()[-20000:])
        raise
    finally:
        await csi.close()
        with capsys.disabled():
            kills = killer.result() if killer.done() and not killer.cancelled() else {}
            print(f"\nseed {SEED}: {csi.answered} calls answered, {csi.repeated} repeated, killed {kills}")


async def check_nothing_lost_leaked_or_doubled(machine: Machine, csi: Patient, expected: Expected) -> None:
    listed = await csi.call("list_volumes")
    ids = sorted(expected.volumes.values())
    assert sorted(entry.volume.volume_id for entry in listed.entries) == ids
    found = await holdings(machine.target.socket_path)
    assert found.lvols == ids
    assert sorted(found.exports) == ids
    open_to = {volume for volume, hosts in found.exports.items() if hosts}
    assert open_to == set(expected.published)
    assert all(found.namespaces[volume] == 1 for volume in open_to)
    assert set(found.namespaces.values()) <= {0, 1}, "a closed subsystem has its namespace or not yet"


async def check_data(csi: Patient, expected: Expected) -> None:
    assert expected.written, "no write was confirmed: the test did not test"
    for volume, data in expected.written.items():
        context = await csi.call("publish", volume, NODE)
        expected.published[volume] = context
        async with connected(context) as host:
            assert await host.read(1, 0, len(data)) == data
