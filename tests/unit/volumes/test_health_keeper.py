"""Disks in service are asked for their health; one that calls itself failing takes no new volumes until it is well."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from agent.config.settings import DiskSettings, PoolSettings
from agent.disks.health import Measures
from agent.errors import DeadlineExceeded
from agent.model import ConditionStatus, Disk, DiskPhase, DiskSpec, DiskStatus, Meta, Replica, TargetState, Tier
from agent.pools.disk_records import DiskRecords
from agent.pools.health_keeper import HealthKeeper, from_target
from agent.pools.ledger import Ledger, Pool
from agent.pools.pools import Pools
from agent.pools.safeguards import Safeguards
from agent.pools.write_caches import WriteCaches
from agent.pools.zeroing import Zeroing
from agent.spdk.client import Client
from agent.spdk.nvme_controller import HealthInfo
from agent.store.local import LocalStore, open_local
from agent.volumes.rules.conditions import condition
from tests.unit.volumes.test_conditions import VOLUME

NODE = "n1"
WELL = Measures(passed=True, media_errors=0)


@dataclass
class World:
    store: LocalStore
    ledger: Ledger
    told: dict[str, Measures | Exception] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    often: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        records = DiskRecords(self.store, NODE)
        rpc = Client(Path("/nonexistent"))
        safeguards = Safeguards(WriteCaches(records, {}, DiskSettings()), Zeroing(rpc, records, 0.1))
        pools = Pools(rpc, records, self.ledger, "", PoolSettings(), {}, safeguards)
        self.keeper = HealthKeeper(records, pools, {"kernel": self._ask}, 0.01)

    async def _ask(self, disk: Disk) -> Measures:
        self.asked.append(disk.meta.name)
        if len(self.asked) == 3:
            self.often.set()
        told = self.told[disk.meta.name]
        if isinstance(told, Exception):
            raise told
        return told

    async def add(
        self, name: str, told: Measures | Exception, transport: str = "nvme", *, claimed: bool = True
    ) -> None:
        status = DiskStatus(node=NODE, path=f"/dev/{name}", transport=transport, phase=DiskPhase.READY)
        await self.store.create(Disk(Meta(name), DiskSpec(claimed=claimed), status))
        self.ledger.set_pool(Pool(name, NODE, Tier.NVME, 1 << 40, 1 << 40, 1 << 20))
        self.told[name] = told

    async def said(self, name: str) -> tuple[ConditionStatus, str, str] | None:
        disk = await self.store.get(Disk, name)
        assert disk is not None
        found = [each for each in disk.status.conditions if each.type == "Healthy"]
        return (found[0].status, found[0].reason, found[0].message) if found else None

    def accepts(self, name: str) -> bool:
        pool = self.ledger.pool(name)
        assert pool is not None
        return pool.accepting


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = await open_local(tmp_path / "quarry.db")
    yield World(store, Ledger(2.0))
    await store.close()


async def test_a_failing_disk_takes_no_new_volumes_until_it_is_well(world: World) -> None:
    await world.add("d0", WELL)
    await world.keeper.look()
    assert await world.said("d0") == (ConditionStatus.TRUE, "Healthy", "nothing is wrong by the disk's own account")
    assert world.accepts("d0")

    world.told["d0"] = replace(WELL, passed=False)
    await world.keeper.look()
    said = await world.said("d0")
    assert said == (ConditionStatus.FALSE, "Failing", "it expects to fail soon (SMART self-assessment)")
    assert not world.accepts("d0")
    disk = await world.store.get(Disk, "d0")
    placed = replace(VOLUME, spec=replace(VOLUME.spec, placement=(Replica("r0", NODE, "d0"),)))
    found = condition(placed, TargetState.READY, world.ledger, disk)
    assert (found.abnormal, "is failing: it expects to fail soon" in found.message) == (True, True)

    world.told["d0"] = replace(WELL, media_errors=3)
    await world.keeper.look()
    assert (await world.said("d0") or ())[1] == "Degraded"
    assert world.accepts("d0")


async def test_the_same_said_again_writes_nothing(world: World) -> None:
    await world.add("d0", WELL)
    await world.keeper.look()
    before = await world.store.get(Disk, "d0")
    await world.keeper.look()
    assert await world.store.get(Disk, "d0") == before
    assert world.asked == ["d0", "d0"]


async def test_who_does_not_answer_now_is_what_it_was(world: World) -> None:
    await world.add("d0", DeadlineExceeded("smartctl did not end within 60 s"))
    await world.keeper.look()
    assert await world.said("d0") == (ConditionStatus.UNKNOWN, "Unknown", "smartctl did not end within 60 s")
    world.told["d0"] = replace(WELL, passed=False)
    await world.keeper.look()
    world.told["d0"] = Measures(problem="it sleeps")
    await world.keeper.look()
    assert (await world.said("d0") or ())[1] == "Failing"
    assert not world.accepts("d0")


async def test_only_disks_in_service_that_keep_a_log_are_asked(world: World) -> None:
    await world.add("d0", WELL, "file")
    await world.add("d1", WELL, "virtio")
    await world.add("d2", WELL, claimed=False)
    await world.add("d3", WELL, "sata")
    await world.keeper.look()
    assert world.asked == ["d3"]


async def test_it_asks_again_and_again_until_it_is_stopped(world: World) -> None:
    await world.add("d0", WELL)
    await world.keeper.start()
    await asyncio.wait_for(world.often.wait(), 5)
    await world.keeper.stop()
    count = len(world.asked)
    await asyncio.sleep(0.05)
    assert len(world.asked) == count


def test_what_the_target_tells_of_its_own_disk() -> None:
    told = from_target(HealthInfo(critical_warning=4, temperature_celsius=51, percentage_used=7, media_errors=2))
    assert (told.passed, told.critical_warning, told.temperature_c, told.media_errors) == (False, 4, 51, 2)
