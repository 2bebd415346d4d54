"""Events, lost events and periodic comparisons: what is looked at, how often, and what is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from agent.disks.inventory import LOOK_AGAIN_AT_ONCE, LOOK_AGAIN_S, Change, Inventory
from agent.disks.watch import Watch
from agent.errors import Unavailable

from .fake_machine import BLANK, Disk, FakeMachine, carries
from .lab import nvme, scsi

SETTLE_S = 0.02


@dataclass
class Follower:
    machine: FakeMachine
    inventory: Inventory
    watch: Watch
    told: list[Change] = field(default_factory=list)

    def report(self, changes: Sequence[Change]) -> None:
        self.told.extend(changes)

    def kinds(self) -> list[tuple[str, str]]:
        return [(change.kind.value, change.known.name) for change in self.told]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 - conditions of all kinds
                await asyncio.sleep(0.002)

    async def quiet(self) -> None:
        """Long enough for a look to come if one was on its way."""
        await asyncio.sleep(SETTLE_S * 3)


@asynccontextmanager
async def following(machine: FakeMachine, *, rescan_s: float = 60) -> AsyncIterator[Follower]:
    inventory = Inventory(machine)
    follower = Follower(machine, inventory, Watch(machine, inventory, settle_s=SETTLE_S, rescan_s=rescan_s))
    ready = asyncio.Event()
    task = asyncio.create_task(follower.watch.run(follower.report, ready.set))
    try:
        async with asyncio.timeout(5):
            await ready.wait()
        follower.told.clear()
        follower.watch.looks = 0
        machine.looked.clear()
        machine.asked.clear()
        yield follower
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert not machine.listeners


def shelf(count: int) -> FakeMachine:
    machine = FakeMachine()
    for index in range(count):
        place = f"devices/pci0000:00/0000:00:0c.0/host0/port-0:{index}/end_device-0:{index}/target0:0:{index}"
        wwid = {"device/wwid": f"naa.5000c6{index:010x}"}
        machine.plug(Disk(f"sd{index}", f"{place}/block/sd{index}", files=dict(wwid)))
    return machine


async def test_a_burst_about_one_disk_is_one_look_at_it_alone() -> None:
    machine = shelf(20)
    async with following(machine) as follower:
        machine.recording.looks["sd3"] = carries("an ext4 filesystem")
        for _ in range(50):
            machine.emit("change", "sd3")
        await follower.until(lambda: bool(follower.told))
        await follower.quiet()
        assert machine.looked == {"sd3": 1}
        assert follower.kinds() == [("changed", "sd3")]
        assert follower.watch.looks == 1
        assert not follower.inventory.known["sd3"].status.eligible


async def test_plugged_and_pulled() -> None:
    machine = shelf(2)
    async with following(machine) as follower:
        machine.plug(nvme(0, 1, "HOT", 4194304))
        machine.emit("add", "nvme0n1")
        await follower.until(lambda: ("added", "nvme0n1") in follower.kinds())
        machine.pull("nvme0n1")
        machine.emit("remove", "nvme0n1")
        await follower.until(lambda: ("removed", "nvme0n1") in follower.kinds())
        assert "nvme0n1" not in follower.inventory.known
        assert machine.looked == {"nvme0n1": 1}


async def test_an_event_about_nothing_new_tells_nothing() -> None:
    machine = shelf(2)
    async with following(machine) as follower:
        machine.emit("change", "sd0")
        machine.emit("remove", "never-seen")
        await follower.until(lambda: follower.watch.looks == 2)
        await follower.quiet()
        assert follower.told == []


async def test_what_happens_during_a_look_is_looked_at_after_it() -> None:
    machine = shelf(2)
    async with following(machine) as follower:
        machine.stuck["sd0"] = asyncio.Event()
        machine.emit("change", "sd0")
        await follower.until(lambda: machine.looked["sd0"] == 1)
        machine.recording.looks["sd0"] = carries("an xfs filesystem")
        machine.recording.looks["sd1"] = carries("an xfs filesystem")
        machine.emit("change", "sd0")
        machine.emit("change", "sd1")
        await follower.until(lambda: ("changed", "sd1") in follower.kinds())  # not held up by the one that is stuck
        for _ in range(3):
            machine.emit("change", "sd0")
            await follower.quiet()
        assert machine.looked["sd0"] == 1
        machine.stuck.pop("sd0").set()
        await follower.until(lambda: not follower.inventory.known["sd0"].status.eligible)
        await follower.quiet()
        assert machine.looked["sd0"] == 2


async def test_in_the_beginning_a_disk_that_does_not_answer_holds_up_only_itself() -> None:
    machine, told, ready = shelf(4), list[Change](), list[bool]()
    stuck = machine.stuck["sd2"] = asyncio.Event()
    watch = Watch(machine, Inventory(machine), settle_s=SETTLE_S)
    task = asyncio.create_task(watch.run(told.extend, lambda: ready.append(True)))
    try:
        async with asyncio.timeout(5):
            while len(told) < 3:  # noqa: ASYNC110 - a list tells nobody
                await asyncio.sleep(0.002)
            machine.plug(nvme(0, 1, "HOT", 4194304))
            machine.emit("add", "nvme0n1")
            while len(told) < 4:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
            assert "sd2" not in {change.known.name for change in told}
            assert not ready
            stuck.set()
            while not ready:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        assert len(told) == 5
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_look_that_fails_is_repeated_and_ends_nothing() -> None:
    machine = shelf(3)
    async with following(machine, rescan_s=0.03) as follower:

        def fail(name: str) -> None:
            if machine.looked[name] == 1:
                raise Unavailable("no process can be started")

        machine.on_look = fail
        machine.plug(nvme(0, 1, "HOT", 4194304))
        machine.emit("add", "nvme0n1")
        await follower.until(lambda: ("added", "nvme0n1") in follower.kinds())
        assert machine.looked == {"nvme0n1": 2}


async def test_lost_events_are_healed_at_once_and_only_the_difference_is_read() -> None:
    machine = shelf(10)
    async with following(machine) as follower:
        machine.pull("sd1")
        machine.plug(scsi(0, "NEW", 4194304))
        machine.emit("lost", "")
        await follower.until(lambda: len(follower.told) == 2)
        assert sorted(follower.kinds()) == [("added", "sda"), ("removed", "sd1")]
        assert machine.looked == {"sda": 1}


async def test_without_any_event_the_periodic_comparison_finds_it() -> None:
    machine = shelf(10)
    async with following(machine, rescan_s=0.03) as follower:
        machine.recording.files["class/block/sd2/size"] = "16777216"
        machine.plug(scsi(0, "NEW", 4194304))
        await follower.until(lambda: len(follower.told) == 2)
        assert sorted(follower.kinds()) == [("added", "sda"), ("changed", "sd2")]
        assert machine.looked == {"sd2": 1, "sda": 1}


async def test_a_mount_is_seen_without_reading_the_disk() -> None:
    machine = shelf(3)
    async with following(machine, rescan_s=0.03) as follower:
        machine.recording.mounts = {machine.recording.files["class/block/sd1/dev"]: ["/srv"]}
        await follower.until(lambda: bool(follower.told))
        assert follower.inventory.known["sd1"].status.mount_points == ("/srv",)
        assert follower.kinds() == [("changed", "sd1")]
        assert not machine.looked


async def test_what_is_built_on_a_disk_shows_at_the_disk_without_reading_it() -> None:
    machine = shelf(3)
    async with following(machine) as follower:
        machine.set_folder("class/block/sd1/holders", ["dm-0"])
        machine.plug(Disk("dm-0", "devices/virtual/block/dm-0", files={"dm/name": "v"}, slaves=["sd1"]))
        machine.emit("add", "dm-0")
        await follower.until(lambda: len(follower.told) == 2)
        assert follower.inventory.known["sd1"].status.holders == ("dm-0",)
        assert machine.looked == {"dm-0": 1}
        machine.pull("dm-0")
        machine.set_folder("class/block/sd1/holders", [])
        machine.emit("remove", "dm-0")
        await follower.until(lambda: len(follower.told) == 4)
        assert follower.inventory.known["sd1"].status.eligible


async def test_content_that_changed_unseen_is_found_by_looking_again_a_few_at_a_time() -> None:
    machine, now = shelf(30), 0.0
    inventory = Inventory(machine, clock=lambda: now)
    await inventory.scan()
    machine.looked.clear()
    machine.recording.looks["sd29"] = carries("a swap signature")
    await inventory.scan()
    assert not machine.looked
    now = LOOK_AGAIN_S + 1
    found = list[Change]()
    for rescan in range(1, 5):
        found += await inventory.scan()
        assert machine.looked.total() == min(30, rescan * LOOK_AGAIN_AT_ONCE)
    assert [change.known.name for change in found] == ["sd29"]
    assert set(machine.looked.values()) == {1}


async def test_discovery_of_512_disks_costs_as_much_for_each_as_that_of_64() -> None:
    asked = dict[int, float]()
    for count in (64, 512):
        machine = shelf(count)
        inventory = Inventory(machine)
        assert len(await inventory.scan()) == count
        assert machine.looked.total() == count
        asked[count] = machine.questions / count
        machine.asked.clear()
        assert await inventory.scan() == []
        assert machine.looked.total() == count
        assert machine.questions <= asked[count] * count
    assert asked[512] <= asked[64] * 1.01
    assert asked[512] < 120


async def test_an_event_among_512_disks_asks_about_one() -> None:
    machine = shelf(512)
    async with following(machine) as follower:
        machine.recording.looks["sd77"] = carries("an ext4 filesystem")
        machine.emit("change", "sd77")
        await follower.until(lambda: bool(follower.told))
        machine.recording.looks["sd77"] = BLANK
        machine.emit("change", "sd77")
        await follower.until(lambda: len(follower.told) == 2)
        assert machine.looked == {"sd77": 2}
        assert {name for name in machine.asked if name.startswith("sd")} == {"sd77"}
        assert machine.questions < 250
