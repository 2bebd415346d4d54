"""A claim is noticed whatever happened to the watch of the store before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from agent.config.settings import DiskSettings, PoolSettings
from agent.disks.inventory import Inventory, Known
from agent.disks.watch import Watch
from agent.errors import Unavailable
from agent.model import Disk, DiskSpec
from agent.pools.disk_driver import DiskDrivers
from agent.pools.disk_keeper import DiskKeeper
from agent.pools.disk_records import DiskRecords
from agent.pools.ledger import Ledger
from agent.pools.pools import Pools
from agent.pools.safeguards import Safeguards
from agent.pools.write_caches import WriteCaches
from agent.pools.zeroing import Zeroing
from agent.spdk.client import Client
from agent.store.interface import Event, R, Store
from agent.store.local import open_local
from agent.store.through import StoreThrough
from agent.tasks.failures import FAILURES
from tests.unit.disks.fake_machine import FakeMachine
from tests.unit.disks.lab import nvme

NODE = "n1"


class FailingStore(StoreThrough):
    """The first watch ends in `failure` at its first event."""

    def __init__(self, store: Store, failure: Exception | None) -> None:
        super().__init__(store)
        self.failure = failure
        self.watches = 0

    def watch(self, kind: type[R], since: int | None = None) -> AsyncIterator[Event[R]]:
        self.watches += 1
        failure, self.failure = self.failure, None
        events = super().watch(kind, since)
        return events if failure is None else self._failing(events, failure)

    @staticmethod
    async def _failing(events: AsyncIterator[Event[R]], failure: Exception) -> AsyncIterator[Event[R]]:
        await anext(events)
        raise failure
        yield


class Drivers:
    """Notes what is wanted of each disk; that a disk is moved keeps it from being served."""

    def __init__(self) -> None:
        self.seen: list[bool | None] = []

    async def change(self, disk: Disk, known: Known) -> bool:
        self.seen.append(disk.spec.claimed)
        return True


@pytest.mark.parametrize("failure", [Unavailable("the database is away"), KeyError("spec")])
async def test_a_claim_is_noticed_after_the_watch_of_the_store_has_failed(tmp_path: Path, failure: Exception) -> None:
    machine = FakeMachine()
    machine.plug(nvme(0, 1, "S1", 1 << 23))
    store = FailingStore(await open_local(tmp_path / "quarry.db"), failure)
    records, drivers = DiskRecords(store, NODE), Drivers()
    inventory = Inventory(machine, NODE)
    rpc = Client(tmp_path / "none")
    safeguards = Safeguards(WriteCaches(records, {}, DiskSettings()), Zeroing(rpc, records, 0.1))
    pools = Pools(rpc, records, Ledger(1.0), "", PoolSettings(), {}, safeguards)
    moving: Any = drivers
    keeper = DiskKeeper(store, records, Watch(machine, inventory), pools, cast(DiskDrivers, moving), DiskSettings())
    before = FAILURES.counts["disks-specs"]
    await keeper.start()
    try:
        async with asyncio.timeout(10):
            while not (found := await store.list(Disk)) or not drivers.seen:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            # Its record was an event, which ended the watch. Nobody has claimed it yet.
            while store.watches < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            drivers.seen.clear()
            disk = await store.get(Disk, found[0].meta.name)
            assert disk is not None
            await store.update(replace(disk, spec=DiskSpec(claimed=True)))
            while True not in drivers.seen:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert FAILURES.counts["disks-specs"] - before == 1
    finally:
        await keeper.stop()
        await store.close()
