"""Disks that the target drives itself: attached once, the right ones, let go of only as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.disks.binder import Binder, away
from agent.disks.binding import Driver
from agent.errors import RpcError, Unavailable
from agent.model import Disk, DiskPhase, Meta
from agent.pools.access import kind
from agent.pools.userspace_disk import Recovery, UserspaceAccess
from agent.pools.why import Refused
from tests.unit.disks.test_binding import A, World


class FakeTarget:
    """What a target knows of NVMe controllers. `disks` by PCI address: serial number and namespace ids."""

    def __init__(self) -> None:
        self.disks = {A: ("LABNVMEA0001", (1, 2))}
        self.controllers: dict[str, str] = {}
        self.claimed: set[str] = set()
        self.attached = 0

    async def call(
        self, method: str, params: Mapping[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> Any:
        given = dict(params or {})
        match method:
            case "bdev_get_bdevs":
                return [self._bdev(given["name"])]
            case "bdev_nvme_attach_controller":
                return self._attach(given["name"], given["traddr"])
            case "bdev_nvme_detach_controller":
                if self.controllers.pop(given["name"], None) is None:
                    raise RpcError(method, -19, "No such device")
                return True
            case "bdev_nvme_get_controllers":
                if given["name"] not in self.controllers:
                    raise RpcError(method, -22, "Invalid argument")
                return [{"name": given["name"], "ctrlrs": []}]
            case _:
                raise RpcError(method, -32601, "Method not found")

    def _attach(self, name: str, address: str) -> list[str]:
        if name in self.controllers:
            raise RpcError("bdev_nvme_attach_controller", -114, "A controller named so already exists")
        if address not in self.disks:
            raise RpcError("bdev_nvme_attach_controller", -19, "No such device")
        self.attached += 1
        self.controllers[name] = address
        return [f"{name}n{nsid}" for nsid in self.disks[address][1]]

    def _bdev(self, name: str) -> dict[str, Any]:
        controller, _, nsid = name.rpartition("n")
        address = self.controllers.get(controller, "")
        serial, nsids = self.disks.get(address, ("", ()))
        if not nsid.isdecimal() or int(nsid) not in nsids:
            raise RpcError("bdev_get_bdevs", -19, "No such device")
        part = {"trid": {"trtype": "PCIe", "traddr": address}, "ctrlr_data": {"serial_number": serial}}
        sizes = {"block_size": 512, "num_blocks": 1 << 21, "claimed": name in self.claimed}
        return {"name": name, "product_name": "NVMe disk", "driver_specific": {"nvme": [part]}} | sizes


class Setup:
    def __init__(self, world: World, binder: Binder, target: FakeTarget) -> None:
        self.world, self.binder, self.target = world, binder, target
        self.recovered = asyncio.Event()
        self.recovered.set()
        self.access = UserspaceAccess(target, binder, self.recovered, embedded=False)
        found = sorted(away(binder.bindings()).values(), key=lambda known: known.name)
        self.first, self.second = (Disk(Meta(known.identity), status=known.status) for known in found)


@pytest.fixture
async def setup(tmp_path: Path) -> Setup:
    binder, inventory = await (world := World(tmp_path)).process()
    await binder.bind(inventory.known["nvme0n1"], Driver.VFIO)
    return Setup(world, binder, FakeTarget())


async def test_one_call_attaches_both_namespaces_however_often_they_are_wanted(setup: Setup) -> None:
    assert kind(setup.first) == "userspace"
    assert setup.first.bdev_name == setup.first.status.bdev
    await asyncio.gather(*(setup.access.attach(disk) for disk in (setup.first, setup.second, setup.first)))
    assert (setup.target.attached, list(setup.target.controllers.values())) == (1, [A])
    setup.target.controllers.clear()  # a new target
    await setup.access.attach(setup.second)
    assert setup.target.attached == 2


async def test_another_disk_in_the_slot_is_let_go_of(setup: Setup) -> None:
    setup.target.disks[A] = ("SOMETHINGELSE", (1, 2))
    with pytest.raises(Refused, match="serial number 'SOMETHINGELSE', not 'LABNVMEA0001'"):
        await setup.access.attach(setup.first)
    assert not setup.target.controllers


async def test_a_target_that_cannot_have_it_says_what_may_be_missing(setup: Setup) -> None:
    setup.target.disks.clear()
    with pytest.raises(Unavailable, match="the module vfio-pci has to be loaded before the target is started"):
        await setup.access.attach(setup.first)


async def test_the_controller_stays_while_another_pool_is_on_it(setup: Setup) -> None:
    await setup.access.attach(setup.first)
    setup.target.claimed = {setup.second.bdev_name}
    await setup.access.detach(setup.first)
    assert setup.target.controllers
    setup.target.claimed = set()
    await setup.access.detach(setup.first)
    assert not setup.target.controllers
    await setup.access.detach(setup.first)


async def test_a_pool_is_made_only_where_nothing_was_and_once(setup: Setup) -> None:
    formatting = replace(setup.first, status=replace(setup.first.status, phase=DiskPhase.FORMATTING))
    await setup.access.require_blank(setup.first)
    await setup.access.require_blank(formatting)
    await setup.access.require_blank(formatting)
    with pytest.raises(Refused, match="is not blank; it is left alone"):
        await setup.access.require_blank(setup.first)
    await setup.access.require_blank(setup.second)


async def test_a_released_disk_visits_the_kernel_and_comes_back_blank(setup: Setup) -> None:
    await setup.access.attach(setup.first)
    await setup.access.require_blank(
        replace(setup.first, status=replace(setup.first.status, phase=DiskPhase.FORMATTING))
    )
    await setup.access.detach(setup.first)
    before = len(setup.world.pci.writes)
    await setup.access.wipe(setup.first)
    written = [path.rpartition("/")[2] for path, _ in setup.world.pci.writes[before:]]
    assert written == ["driver_override", "unbind", "drivers_probe"] * 2
    assert setup.world.pci.driver(A) == "vfio-pci"
    await setup.access.require_blank(setup.first)


async def test_nothing_is_attached_before_the_controllers_are_where_they_belong(setup: Setup) -> None:
    recovery = Recovery(setup.binder, discovered := asyncio.Event())
    access = UserspaceAccess(setup.target, setup.binder, recovery.done, embedded=False)
    running, attaching = asyncio.create_task(recovery.run()), asyncio.create_task(access.attach(setup.first))
    await asyncio.sleep(0)
    assert (setup.target.attached, recovery.done.is_set()) == (0, False)
    discovered.set()
    await asyncio.gather(running, attaching)
    assert setup.target.attached == 1


async def test_a_disk_that_the_kernel_has_is_waited_for(setup: Setup) -> None:
    await setup.binder.unbind(setup.binder.bindings()[0])
    with pytest.raises(Unavailable, match="is with no user-space driver"):
        await setup.access.attach(setup.first)


async def test_the_embedded_target_drives_no_disk(setup: Setup) -> None:
    access = UserspaceAccess(setup.target, setup.binder, setup.recovered, embedded=True)
    with pytest.raises(Refused, match="needs spdk_tgt"):
        await access.attach(setup.first)
