"""The driver that is wanted of a disk: it is brought there while it is not in service, and else it is said why not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.disks.binder import away
from agent.errors import FailedPrecondition
from agent.model import Disk, DiskDriver, DiskPhase, DiskSpec, Meta, PoolStatus
from agent.pools.disk_driver import DRIVER, NOT_CHANGED, DiskDrivers
from agent.pools.disk_records import DiskRecords
from agent.store.interface import Store
from agent.store.local import open_local
from tests.unit.disks.fake_machine import carries
from tests.unit.disks.test_binding import A, World


class Setup:
    def __init__(self, world: World, store: Store) -> None:
        self.world, self.store = world, store
        self.identity = ""

    async def want(self, driver: DiskDriver | None, **status: object) -> bool:
        """Has an agent that has just started bring the disk there."""
        binder, inventory = await self.world.process()
        known = {each.identity: each for each in (*inventory.known.values(), *away(binder.bindings()).values())}
        self.identity = self.identity or inventory.known["nvme0n1"].identity
        found = await self.store.get(Disk, self.identity)
        if found is None:
            found = await self.store.create(Disk(Meta(self.identity)))
        seen = replace(known[self.identity].status, conditions=found.status.conditions, **status)
        found = await self.store.update(replace(found, spec=DiskSpec(driver=driver), status=seen))
        drivers = DiskDrivers(binder, DiskRecords(self.store, ""), embedded=False)
        return await drivers.change(found, known[self.identity])

    async def said(self) -> list[str]:
        found = await self.store.get(Disk, self.identity)
        assert found is not None
        assert {(each.type, each.reason) for each in found.status.conditions} <= {(DRIVER, NOT_CHANGED)}
        return [each.message for each in found.status.conditions]


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    store = await open_local(tmp_path / "quarry.db")
    yield Setup(World(tmp_path), store)
    await store.close()


async def test_it_goes_where_it_is_wanted_and_stays_where_nobody_says_anything(setup: Setup) -> None:
    assert not await setup.want(None)
    assert not await setup.want(DiskDriver.KERNEL)
    assert setup.world.pci.writes == []
    assert await setup.want(DiskDriver.USERSPACE)
    assert setup.world.pci.driver(A) == "vfio-pci"
    assert not await setup.want(DiskDriver.USERSPACE)
    assert not await setup.want(None)
    assert setup.world.pci.driver(A) == "vfio-pci"
    assert await setup.want(DiskDriver.KERNEL)
    assert setup.world.pci.driver(A) == "nvme"
    assert await setup.said() == []


@pytest.mark.parametrize(
    "status",
    [
        {"phase": DiskPhase.READY, "pool": PoolStatus("uuid", 1, 1, 1)},
        {"phase": DiskPhase.FORMATTING},
        {"phase": DiskPhase.RELEASING},
    ],
    ids=["ready", "formatting", "releasing"],
)
async def test_in_service_it_is_left_alone(setup: Setup, status: dict[str, object]) -> None:
    assert not await setup.want(DiskDriver.USERSPACE, **status)
    assert (setup.world.pci.driver(A), setup.world.pci.writes) == ("nvme", [])
    assert await setup.said() == ["the disk is in service: release it first"]
    assert not await setup.want(None, **status)
    assert await setup.said() == []


async def test_what_speaks_against_it_is_said_until_it_is_done(setup: Setup) -> None:
    looks = setup.world.machine.recording.looks
    blank, looks["nvme0n2"] = looks["nvme0n2"], carries("a ext4 filesystem")
    for _ in range(2):
        with pytest.raises(FailedPrecondition, match="nvme0n2"):
            await setup.want(DiskDriver.USERSPACE)
        assert setup.world.pci.driver(A) == "nvme"
        (message,) = await setup.said()
        assert "nvme0n2" in message
    looks["nvme0n2"] = blank
    assert await setup.want(DiskDriver.USERSPACE)
    assert not await setup.want(DiskDriver.USERSPACE)
    assert await setup.said() == []
