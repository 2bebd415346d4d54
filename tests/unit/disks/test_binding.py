"""NVMe controllers go to a user-space driver and come back, whatever dies in between: on a tree of files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agent.disks.binder import Binder, away
from agent.disks.binding import Driver, State
from agent.disks.inventory import Inventory
from agent.errors import FailedPrecondition, Unavailable
from agent.host.journal import Journal

from .fake_machine import FakeMachine, carries
from .fake_pci import DEVICES, FakePci
from .lab import lab

A, B = "0000:05:00.0", "0000:06:00.0"
GIB_SECTORS = 1 << 21


class Died(BaseException):
    """As kill -9 would: nothing of the process goes on."""


class Hold:
    def __init__(self, held: set[str], path: str) -> None:
        self._held, self._path = held, path
        held.add(path)

    def close(self) -> None:
        self._held.discard(self._path)


class World:
    """The machine that stays, and the processes that come and go on it."""

    def __init__(self, folder: Path) -> None:
        self.deaths = Deaths()
        self.machine = FakeMachine()
        self.pci = FakePci(folder / "sys", self.machine)
        self.pci.plug(A, [(0, 1, "LABNVMEA0001", 4 * GIB_SECTORS), (0, 2, "LABNVMEA0001", 2 * GIB_SECTORS)])
        self.pci.plug(B, [(1, 1, "LABNVMEB0001", 4 * GIB_SECTORS)], group="16")
        self.notes = folder / "bindings"
        self.held = set[str]()
        self.boot = "boot-1"
        self.pci.effect = self.deaths.effect

    async def process(self) -> tuple[Binder, Inventory]:
        self.held.clear()
        inventory = Inventory(self.machine)
        await inventory.scan()

        async def hold(path: str) -> Hold:
            return Hold(self.held, path)

        journal = MortalJournal(self.notes, self.deaths)
        binder = Binder(self.notes, inventory, self.pci, journal=journal, hold=hold, boot_id=lambda: self.boot)
        return binder, inventory

    def override(self, address: str) -> str:
        function = self.pci.function(address)
        assert function is not None
        return function.override


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def bind(world: World, name: str = "nvme0n1", driver: Driver = Driver.VFIO) -> None:
    binder, inventory = await world.process()
    await binder.bind(inventory.known[name], driver)


async def test_there_and_back(world: World) -> None:
    binder, inventory = await world.process()
    before = {known.identity: known.status for known in inventory.known.values() if known.name.startswith("nvme0")}
    binding = await binder.bind(inventory.known["nvme0n2"], Driver.VFIO)
    assert (world.pci.driver(A), world.override(A), world.pci.driver(B)) == ("vfio-pci", "vfio-pci", "nvme")
    assert world.pci.writes == [
        (f"{DEVICES}/{A}/driver_override", "vfio-pci\n"),
        (f"{DEVICES}/{A}/driver/unbind", A),
        ("bus/pci/drivers_probe", A),
    ]
    assert not world.held
    await inventory.scan()
    assert set(inventory.known) == {"nvme1n1"}

    shown = away(binder.bindings())
    assert set(shown) == set(before)
    for identity, known in shown.items():
        status = known.status
        assert (status.driver, status.serial, status.size_bytes) == (
            "userspace", before[identity].serial, before[identity].size_bytes,
        )  # fmt: skip
    names = {known.name: known.status.bdev for known in shown.values()}
    assert names == {f"{A}n1": f"{binding.name}n1", f"{A}n2": f"{binding.name}n2"}

    assert await binder.unbind(binder.bindings()[0]) == ("nvme0n1", "nvme0n2")
    assert (world.pci.driver(A), world.override(A), binder.bindings()) == ("nvme", "", [])
    await inventory.scan()
    found = {known.identity: known.status for known in inventory.known.values() if known.name.startswith("nvme0")}
    assert found == {identity: replace(status, disk_sequence=found[identity].disk_sequence) for identity, status in
                     before.items()}  # fmt: skip


async def test_a_binding_that_is_only_planned_changes_nothing(world: World) -> None:
    binder, inventory = await world.process()
    _, steps = await binder.plan(inventory.known["nvme1n1"], Driver.VFIO)
    assert [str(step).split()[0] for step in steps] == ["note", "write", "write", "write", "note"]
    assert not world.pci.writes
    assert not world.notes.exists()


# --- deaths ---


class Deaths:
    """Counts effects: files of the kernel and notes. The chosen one is the last: done, or not any more."""

    def __init__(self) -> None:
        self._count, self._last, self._done = 0, 0, False

    def at(self, number: int, done: bool) -> None:
        self._count, self._last, self._done = 0, number, done

    @contextmanager
    def effect(self) -> Iterator[None]:
        self._count += 1
        if self._count == self._last and not self._done:
            raise Died
        yield
        if self._count == self._last:
            raise Died


class MortalJournal(Journal):
    def __init__(self, directory: Path, deaths: Deaths) -> None:
        super().__init__(directory)
        self._deaths = deaths

    async def write(self, key: str, note: dict[str, str]) -> None:
        with self._deaths.effect():
            await super().write(key, note)

    async def remove(self, key: str) -> None:
        with self._deaths.effect():
            await super().remove(key)


POINTS = [(number, done) for number in range(1, 6) for done in (False, True)]


@pytest.mark.parametrize("reboot", [False, True], ids=["restart", "reboot"])
@pytest.mark.parametrize(("number", "done"), POINTS)
async def test_a_binding_that_dies_is_finished_or_taken_back(
    world: World, number: int, done: bool, reboot: bool
) -> None:
    binder, inventory = await world.process()
    world.deaths.at(number, done)
    with pytest.raises(Died):
        await binder.bind(inventory.known["nvme0n1"], Driver.VFIO)
    world.deaths.at(0, False)
    if reboot:
        world.pci.reboot()
        world.boot = "boot-2"
    binder, _ = await world.process()
    await binder.recover()
    let_go = number > 3 or (number == 3 and done)
    noted = number == 5 and done
    if let_go and (not reboot or noted):
        assert (world.pci.driver(A), world.override(A)) == ("vfio-pci", "vfio-pci")
        assert [(each.state, each.boot_id, len(each.disks)) for each in binder.bindings()] == [
            (State.BOUND, world.boot, 2)
        ]
    else:
        assert (world.pci.driver(A), world.override(A), binder.bindings()) == ("nvme", "", [])
        await bind(world)
        assert world.pci.driver(A) == "vfio-pci"


@pytest.mark.parametrize("reboot", [False, True], ids=["restart", "reboot"])
@pytest.mark.parametrize(("number", "done"), POINTS)
async def test_a_return_that_dies_is_finished(world: World, number: int, done: bool, reboot: bool) -> None:
    await bind(world)
    binder, _ = await world.process()
    world.deaths.at(number, done)
    with pytest.raises(Died):
        await binder.unbind(binder.bindings()[0])
    world.deaths.at(0, False)
    if reboot:
        world.pci.reboot()
        world.boot = "boot-2"
    binder, _ = await world.process()
    await binder.recover()
    begun = (number, done) != (1, False)
    assert (world.pci.driver(A), world.override(A)) == (("nvme", "") if begun else ("vfio-pci", "vfio-pci"))
    assert len(binder.bindings()) == (0 if begun else 1)


async def test_after_a_reboot_a_disk_is_bound_again_wherever_it_is(world: World) -> None:
    await bind(world)
    world.pci.reboot()
    world.boot = "boot-2"
    binder, _ = await world.process()
    await binder.recover()
    assert [(each.state, each.boot_id) for each in binder.bindings()] == [(State.BOUND, "boot-2")]
    assert world.pci.driver(A) == "vfio-pci"
    await binder.recover()
    assert len(world.pci.writes) == 6


async def test_after_a_reboot_a_disk_that_carries_something_stays_with_the_kernel(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await bind(world)
    world.pci.reboot()
    world.boot = "boot-2"
    world.machine.recording.looks["nvme0n2"] = carries("a ext4 filesystem")
    binder, _ = await world.process()
    await binder.recover()
    assert world.pci.driver(A) == "nvme"
    assert "nvme0n2 carries a ext4 filesystem" in caplog.text


# --- refusals ---


async def refusal(world: World, name: str = "nvme0n1", driver: Driver = Driver.VFIO) -> str:
    binder, inventory = await world.process()
    with pytest.raises(FailedPrecondition) as raised:
        await binder.bind(inventory.known[name], driver)
    assert not world.pci.writes
    assert not binder.bindings()
    assert not world.held
    return str(raised.value)


async def test_a_neighbour_that_the_kernel_drives_makes_the_group_unsafe(world: World) -> None:
    world.pci.add("0000:05:00.1", "0x010601", driver="ahci")
    assert "IOMMU group 15 has other devices that the kernel drives: 0000:05:00.1 (ahci)" in await refusal(world)


@pytest.mark.parametrize("driver", ["", "pcieport", "vfio-pci"])
async def test_bridges_and_what_no_driver_has_are_safe_neighbours(world: World, driver: str) -> None:
    world.pci.add("0000:00:02.0", "0x060400", driver=driver)
    await bind(world)
    assert world.pci.driver(A) == "vfio-pci"


async def test_what_is_on_any_namespace_keeps_the_controller(world: World) -> None:
    world.machine.recording.mounts = {world.machine.recording.files["class/block/nvme0n2/dev"]: ["/srv"]}
    assert "nvme0n2 is mounted at /srv" in await refusal(world, "nvme0n1")


async def test_the_boot_disk_is_kept(world: World) -> None:
    world.machine.recording.mounts = {world.machine.recording.files["class/block/nvme0n1/dev"]: ["/"]}
    assert "nvme0n1 carries the running system" in await refusal(world)


async def test_what_appears_between_the_first_look_and_the_binding_is_seen(world: World) -> None:
    binder, inventory = await world.process()
    assert inventory.known["nvme0n1"].status.eligible
    world.machine.recording.looks["nvme0n2"] = carries("a xfs filesystem")
    with pytest.raises(FailedPrecondition, match="nvme0n2 carries a xfs filesystem"):
        await binder.bind(inventory.known["nvme0n1"], Driver.VFIO)
    assert world.pci.driver(A) == "nvme"


async def test_a_driver_that_is_not_loaded_is_named(world: World) -> None:
    (world.pci.root / "bus/pci/drivers/vfio-pci").rmdir()
    assert "`modprobe vfio-pci`" in await refusal(world)


async def test_without_an_iommu_vfio_is_refused_unless_told_to_go_without(world: World) -> None:
    (world.pci.root / DEVICES / A / "iommu_group").unlink()
    assert "no IOMMU in use" in await refusal(world)
    parameters = world.pci.root / "module/vfio/parameters"
    parameters.mkdir(parents=True)
    (parameters / "enable_unsafe_noiommu_mode").write_text("Y\n")
    await bind(world)
    assert world.pci.driver(A) == "vfio-pci"


async def test_uio_is_refused_behind_an_iommu_that_translates(world: World) -> None:
    assert "use --driver vfio-pci" in await refusal(world, driver=Driver.UIO)
    (world.pci.root / "kernel/iommu_groups/15/type").write_text("identity\n")
    await bind(world, driver=Driver.UIO)
    assert world.pci.driver(A) == "uio_pci_generic"


async def test_only_nvme_on_the_pci_bus_has_such_a_driver(world: World) -> None:
    inventory = Inventory(machine := lab())
    await inventory.scan()
    binder = Binder(world.notes, inventory, world.pci)
    assert machine
    for name in ("sdf", "nvme2n1", "vda"):
        with pytest.raises(FailedPrecondition, match="only NVMe disks on the PCI bus"):
            await binder.plan(inventory.known[name], Driver.VFIO)


async def test_a_driver_that_does_not_take_it_gives_it_back(world: World) -> None:
    world.pci.refusing = {"vfio-pci"}
    binder, inventory = await world.process()
    with pytest.raises(Unavailable, match=r"vfio-pci did not take 0000:05:00\.0: see `dmesg`; the kernel has it again"):
        await binder.bind(inventory.known["nvme0n1"], Driver.VFIO)
    assert (world.pci.driver(A), world.override(A), binder.bindings()) == ("nvme", "", [])
