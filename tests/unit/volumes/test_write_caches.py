"""No disk keeps back what it called written: caches are switched off, looked at again, and told of."""

from __future__ import annotations

import base64
import struct
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.config.settings import DiskSettings, PoolSettings
from agent.disks.write_cache import NONE, OFF, ON, State, WriteCache
from agent.errors import RpcError
from agent.model import ConditionStatus, Disk, DiskPhase, DiskSpec, DiskStatus, Meta, Tier
from agent.pools import write_caches
from agent.pools.access import DiskAccess, Tell
from agent.pools.disk_conditions import takes_new_volumes
from agent.pools.disk_records import DiskRecords
from agent.pools.ledger import Ledger, Pool
from agent.pools.pools import Pools
from agent.pools.safeguards import Safeguards
from agent.pools.why import Refused, Why
from agent.pools.write_cache_keeper import WriteCacheKeeper
from agent.pools.write_caches import WriteCaches
from agent.pools.zeroing import Zeroing
from agent.spdk.client import Client, Rpc
from agent.store.local import LocalStore, open_local
from agent.volumes.rules.news import news

NODE = "n1"
STUCK = WriteCache(State.ON, "its volatile write cache is on: it stayed on")
SILENT = WriteCache(State.UNKNOWN, "its write cache cannot be asked for")


class Way:
    """A disk: how its cache is now, and how it is after it was to be switched off."""

    def __init__(self, now: WriteCache = ON, then: WriteCache = OFF) -> None:
        self.now, self.then = now, then
        self.switched = 0

    async def look(self, disk: Disk) -> WriteCache:
        return self.now

    async def switch_off(self, disk: Disk) -> WriteCache:
        self.switched += 1
        self.now = self.then if self.now.state is State.ON else self.now
        return self.now


class World:
    def __init__(self, store: LocalStore) -> None:
        self.store, self.way, self.ledger = store, Way(), Ledger(2.0)
        self.records = DiskRecords(store, NODE)

    def caches(self, **settings: Any) -> WriteCaches:
        return WriteCaches(self.records, {"kernel": self.way}, DiskSettings.model_validate(settings))

    async def add(self, **status: Any) -> Disk:
        fields = {"node": NODE, "path": "/dev/nvme0n1", "transport": "nvme", "phase": DiskPhase.READY} | status
        self.ledger.set_pool(Pool("d0", NODE, Tier.NVME, 1 << 40, 1 << 40, 1 << 20))
        return await self.store.create(Disk(Meta("d0"), DiskSpec(claimed=True), DiskStatus(**fields)))

    def keeper(self) -> WriteCacheKeeper:
        return WriteCacheKeeper(self.records, self.pools(Client(Path("/nonexistent")), {}), self.caches())

    def pools(self, rpc: Rpc, access: dict[str, DiskAccess]) -> Pools:
        safeguards = Safeguards(self.caches(), Zeroing(rpc, self.records, 0.1))
        return Pools(rpc, self.records, self.ledger, "", PoolSettings(), access, safeguards)

    async def disk(self) -> Disk:
        found = await self.store.get(Disk, "d0")
        assert found is not None
        return found


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = await open_local(tmp_path / "quarry.db")
    yield World(store)
    await store.close()


def told(disk: Disk) -> tuple[ConditionStatus, str]:
    (found,) = [each for each in disk.status.conditions if each.type == "PowerLossSafe"]
    return found.status, found.reason


async def test_a_cache_is_switched_off_and_said_to_be(world: World) -> None:
    disk = await world.caches().secure(await world.add())
    assert told(disk) == (ConditionStatus.TRUE, "SwitchedOff")
    assert told(await world.disk()) == (ConditionStatus.TRUE, "SwitchedOff")
    world.caches().require_safe(disk)
    again = await world.caches().secure(disk)
    assert again.meta.version == disk.meta.version, "the same said again writes nothing"


class BlankDisk:
    """Implements `DiskAccess`, and an Rpc to a target that serves no pool."""

    def __init__(self) -> None:
        self.attached = False
        self.made = 0

    async def call(
        self, method: str, params: Mapping[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> Any:
        if method == "bdev_wait_for_examine":
            return True
        if method == "bdev_lvol_get_lvstores" and not params:
            return []
        self.made += method == "bdev_lvol_create_lvstore"
        raise RpcError(method, -19, "No such device")

    async def attach(self, disk: Disk) -> None:
        self.attached = True

    async def require_blank(self, disk: Disk) -> None:
        pass

    async def zero(self, disk: Disk, start: int, end: int, tell: Tell) -> bool:
        return True

    async def detach(self, disk: Disk) -> None:
        self.attached = False

    async def wipe(self, disk: Disk) -> None:
        pass

    async def explain(self, disk: Disk) -> str:
        return "it is blank"


async def test_a_disk_that_is_refused_is_let_go_of_and_refused_again_without_a_write(world: World) -> None:
    world.way = Way(STUCK, STUCK)
    disk, blank = await world.add(phase=DiskPhase.AVAILABLE), BlankDisk()
    access: Any = blank
    pools = world.pools(blank, {"kernel": access})
    with pytest.raises(Refused, match="could lose what was synced"):
        await pools.ensure(disk)
    refused = await world.disk()
    assert (refused.status.phase, blank.attached, blank.made) == (DiskPhase.FAILED, False, 0)
    assert [each.reason for each in refused.status.conditions if each.type == "Usable"] == ["WriteCache"]
    with pytest.raises(Refused):
        await pools.ensure(refused)
    assert (await world.disk()).meta.version == refused.meta.version
    assert not blank.attached

    world.way.then = OFF
    with pytest.raises(RpcError):  # it is made now; this target cannot
        await pools.ensure(refused)
    assert blank.made == 1


@pytest.mark.parametrize("found", [STUCK, SILENT])
async def test_no_pool_is_made_on_a_disk_that_is_not_known_to_keep_nothing_back(
    world: World, found: WriteCache
) -> None:
    world.way = Way(found, found)
    disk = await world.caches().secure(await world.add())
    with pytest.raises(Refused, match="`power_loss_protected: true`") as refused:
        world.caches().require_safe(disk)
    assert refused.value.why is Why.WRITE_CACHE
    assert found.text in str(refused.value)


async def test_a_rule_leaves_the_cache_on(world: World) -> None:
    caches = world.caches(known=[{"transport": "nvme", "power_loss_protected": True}])
    disk = await caches.secure(await world.add())
    assert told(disk) == (ConditionStatus.TRUE, "Protected")
    assert (world.way.switched, takes_new_volumes(disk)) == (0, True)
    caches.require_safe(disk)
    assert await caches.check(disk) == disk
    world.way.now = OFF  # by somebody, and on again
    disk = await caches.check(disk)
    assert told(disk) == (ConditionStatus.TRUE, "SwitchedOff")
    world.way.now = ON
    assert told(await caches.check(disk)) == (ConditionStatus.TRUE, "Protected")
    assert world.way.switched == 0


async def test_a_rule_for_other_disks_says_nothing_of_this_one(world: World) -> None:
    caches = world.caches(claim=[{"transport": "sata", "power_loss_protected": True}, {"transport": "nvme"}])
    assert told(await caches.secure(await world.add())) == (ConditionStatus.TRUE, "SwitchedOff")


async def test_files_have_nothing_to_be_switched_off(world: World) -> None:
    disk = await world.add(transport="file")
    assert await world.caches().secure(disk) == disk
    world.caches().require_safe(disk)


async def test_a_loop_device_serves_and_promises_nothing(world: World) -> None:
    world.way = Way(SILENT)
    disk = await world.caches().secure(await world.add(transport="loop"))
    assert told(disk) == (ConditionStatus.UNKNOWN, "NotKnown")
    world.caches().require_safe(disk)


async def test_a_disk_in_service_whose_cache_stays_on_serves_and_takes_no_new_volumes(world: World) -> None:
    before = await world.add()
    world.way = Way(STUCK, STUCK)
    await world.keeper().look()
    disk = await world.disk()
    assert told(disk) == (ConditionStatus.FALSE, "VolatileCacheOn")
    assert disk.status.phase is DiskPhase.READY
    pool = world.ledger.pool("d0")
    assert pool is not None
    assert not pool.accepting
    (event,) = news(before, disk)
    assert (event.reason, event.is_warning) == ("VolatileCacheOn", True)
    tries = world.way.switched
    await world.keeper().look()
    assert world.way.switched == tries, "it is not told every time"


async def test_a_cache_that_comes_on_again_is_told_and_switched_off(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await world.add()
    keeper = world.keeper()
    await keeper.look()
    safe = await world.disk()
    assert told(safe) == (ConditionStatus.TRUE, "SwitchedOff")
    world.way.now = ON
    await keeper.look()
    assert told(await world.disk()) == (ConditionStatus.TRUE, "SwitchedOff")
    assert (world.way.switched, world.way.now) == (2, OFF)
    assert "has come on again" in caplog.text
    await keeper.look()
    assert world.way.switched == 2


async def test_no_answer_leaves_what_was_known_last(world: World) -> None:
    await world.add()
    keeper = world.keeper()
    await keeper.look()
    world.way.now = SILENT
    await keeper.look()
    assert told(await world.disk()) == (ConditionStatus.TRUE, "SwitchedOff")


async def test_a_disk_without_a_cache(world: World) -> None:
    world.way = Way(NONE)
    disk = await world.caches().secure(await world.add())
    assert told(disk) == (ConditionStatus.TRUE, "NoVolatileCache")


async def test_the_ways_are_those_of_both_drivers() -> None:
    assert set(write_caches.ways(Client(Path("/nonexistent")))) == {"kernel", "userspace"}


class TargetsController:
    """An Rpc to a target that drives an NVMe controller with a cache."""

    def __init__(self) -> None:
        self.on, self.flushed = True, list[int]()

    async def call(
        self, method: str, params: Mapping[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> Any:
        given = dict(params or {})
        if method != "bdev_nvme_send_cmd" or given["name"] != "nvme-5":
            raise RpcError(method, -32602, "Invalid argument")
        entry = base64.urlsafe_b64decode(given["cmdbuf"])
        result, data = 0, b""
        match given["cmd_type"], entry[0]:
            case "admin", 0x06:
                data = bytes(525) + b"\x07" + bytes(3570)
            case "admin", 0x0A:
                result = int(self.on)
            case "admin", 0x09:
                self.on = bool(entry[44])
            case "io", 0x00:
                assert not self.on
                self.flushed.append(entry[4])
        cpl = base64.urlsafe_b64encode(struct.pack("<I12x", result)).decode()
        return {"cpl": cpl, "data": base64.urlsafe_b64encode(data).decode()}


async def test_a_disk_of_the_target_is_switched_off_by_the_target_and_flushed() -> None:
    target = TargetsController()
    way = write_caches.UserspaceWay(target)
    disk = Disk(Meta("d0"), status=DiskStatus(bdev="nvme-5n2"))
    assert (await way.look(disk)).state is State.ON
    assert (await way.switch_off(disk)).state is State.OFF
    assert (target.on, target.flushed) == (False, [2])
    absent = await way.look(replace(disk, status=DiskStatus(bdev="nvme-6n1")))
    assert absent.state is State.UNKNOWN
