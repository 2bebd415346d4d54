"""Which driver an NVMe controller has and should have: the note of it, what speaks against a change, and its steps.

Pure. A controller is handed over as a whole, with all its namespaces. The steps are such that whoever finds the note
and looks at the function knows what is left to do, wherever the steps ended.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from agent.disks.identity import Marks
from agent.disks.identity import identity as identity_of
from agent.disks.inventory import Known
from agent.disks.pci import KERNEL_DRIVER, Controller, Function
from agent.model import DiskStatus


class Driver(StrEnum):
    """Drivers of the kernel that let a program drive the function."""

    VFIO = "vfio-pci"
    UIO = "uio_pci_generic"


NEIGHBOUR_DRIVERS = frozenset({"", Driver.VFIO.value, "pci-stub", "pcieport"})
"""What a function of the same IOMMU group may have: these start no DMA of their own (vfio's own rule)."""

_ADDRESS = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


class State(StrEnum):
    """How far it is. Written before anything is done, so it may be ahead of the truth."""

    BINDING = "binding"
    BOUND = "bound"
    RETURNING = "returning"


@dataclass(frozen=True, slots=True)
class BoundDisk:
    """A namespace as it was seen last, immediately before the kernel let go of it."""

    identity: str
    nsid: int
    status: DiskStatus
    used: bool = False
    """The target may have written to it since."""

    @property
    def blank(self) -> bool:
        """Whether nothing is on it, not even a pool: nothing was, and the target has made none."""
        return self.status.eligible and not self.status.signatures and not self.used


@dataclass(frozen=True, slots=True)
class Binding:
    """The note of one controller that is at a user-space driver, or on its way there or back."""

    name: str
    """Of the controller in the target: made of model and serial number, whatever slot it is in."""
    state: State
    address: str
    driver: Driver
    ids: str
    boot_id: str
    """A binding does not survive the kernel: after a reboot the kernel's own driver has the controller again."""
    disks: tuple[BoundDisk, ...]

    def bdev(self, disk: BoundDisk) -> str:
        """Name of the disk's bdev in the target, which makes it of controller and namespace."""
        return f"{self.name}n{disk.nsid}"

    def shown_as(self, disk: BoundDisk) -> str:
        """A name for people, in place of the kernel's: it has none."""
        return f"{self.address}n{disk.nsid}"


class Action(StrEnum):
    NOTE = "note"
    """Write the state of the binding durably."""
    OVERRIDE = "override"
    UNBIND = "unbind"
    PROBE = "probe"
    FORGET = "forget"


@dataclass(frozen=True, slots=True)
class Step:
    """`value` is a state to note, or a driver ("": any)."""

    action: Action
    address: str
    value: str = ""

    def __str__(self) -> str:
        """In words."""
        here = f"/sys/bus/pci/devices/{self.address}"
        return {
            Action.NOTE: f"note that {self.address} is {self.value}",
            Action.OVERRIDE: f"write {self.value or 'nothing'} to {here}/driver_override",
            Action.UNBIND: f"write {self.address} to {here}/driver/unbind ({self.value})",
            Action.PROBE: f"write {self.address} to /sys/bus/pci/drivers_probe ({self.value} takes it)",
            Action.FORGET: f"remove the note of {self.address}",
        }[self.action]


def controller_name(controller: Controller) -> str:
    """The name in the target of a controller. "" when it tells no serial number."""
    found = identity_of(Marks(model=controller.model, serial=controller.serial))
    return found.replace("sn-", "nvme-", 1) if found else ""


def steps_to_bind(function: Function, driver: Driver) -> tuple[Step, ...]:
    """From any driver, or none, to `driver`."""
    address = function.address
    return (
        Step(Action.NOTE, address, State.BINDING),
        *_moves(function, driver.value, driver.value),
        Step(Action.NOTE, address, State.BOUND),
    )


def steps_to_return(function: Function) -> tuple[Step, ...]:
    """From any driver, or none, to the kernel's."""
    address = function.address
    return (
        Step(Action.NOTE, address, State.RETURNING),
        *_moves(function, KERNEL_DRIVER, ""),
        Step(Action.FORGET, address),
    )


def steps_to_settle(binding: Binding, function: Function | None, boot_id: str) -> tuple[Step, ...] | None:
    """What the next start does about a note. None: the controller has to be cleared and bound anew, if it is there.

    A binding that was cut off is finished when the kernel's driver has let go already, since nobody came between; else
    it is taken back. So is what a controller has that is not the noted one.
    """
    address, driver = binding.address, binding.driver
    if function is None or function.ids != binding.ids:
        return (Step(Action.FORGET, address),) if binding.state is not State.BOUND else None
    if binding.state is State.RETURNING:
        return steps_to_return(function)
    if function.driver == driver and binding.boot_id == boot_id:
        return (Step(Action.NOTE, address, State.BOUND),) if binding.state is State.BINDING else ()
    if function.driver == "" and binding.boot_id == boot_id:
        return steps_to_bind(function, driver)
    if binding.state is State.BINDING:
        return steps_to_return(function) if function.driver in ("", KERNEL_DRIVER, driver) else _forget(function)
    return None


def _forget(function: Function) -> tuple[Step, ...]:
    return (Step(Action.FORGET, function.address),)


def _moves(function: Function, driver: str, override: str) -> Iterator[Step]:
    if function.driver == driver:
        if function.override != override:
            yield Step(Action.OVERRIDE, function.address, override)
        return
    if function.override != override:
        yield Step(Action.OVERRIDE, function.address, override)
    if function.driver:
        yield Step(Action.UNBIND, function.address, function.driver)
    yield Step(Action.PROBE, function.address, driver)


@dataclass(frozen=True, slots=True)
class Case:
    """All that a decision about a controller is made from."""

    function: Function
    neighbours: tuple[Function, ...]
    controller: Controller | None
    disks: tuple[Known, ...]
    """Of the controller, freshly looked at."""
    unknown: tuple[str, ...] = ()
    """Namespaces of the controller that are no disks known here."""
    has_driver: bool = True
    allows_no_iommu: bool = False
    translates: bool = False


def refusals(case: Case, driver: Driver) -> tuple[str, ...]:
    """Why a controller is left to the kernel, all reasons in words; empty: it can be bound."""
    return (*_of_driver(case, driver), *_of_iommu(case, driver), *_of_controller(case), *_of_disks(case))


def _of_driver(case: Case, driver: Driver) -> Iterator[str]:
    if not case.has_driver:
        yield f"the kernel's driver {driver} is not loaded: `modprobe {driver}`"
    if case.function.driver != KERNEL_DRIVER:
        has = f"driver {case.function.driver}" if case.function.driver else "no driver"
        yield f"{case.function.address} has {has}, not the kernel's {KERNEL_DRIVER}: who changed that has to undo it"


def _of_iommu(case: Case, driver: Driver) -> Iterator[str]:
    group = case.function.iommu_group
    if driver is Driver.UIO:
        if case.translates:
            yield (
                f"{driver} gives a program physical addresses, which the IOMMU of this machine does not let pass: "
                f"use --driver {Driver.VFIO}"
            )
        return
    if not group and not case.allows_no_iommu:
        yield (
            f"this machine has no IOMMU in use, which {driver} needs: switch it on (VT-d or AMD-Vi in the firmware, "
            f"`intel_iommu=on` on the kernel's command line), or use --driver {Driver.UIO}, or let vfio go without "
            "(`echo 1 > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode`)"
        )
    others = [each for each in case.neighbours if each.driver not in NEIGHBOUR_DRIVERS]
    if others:
        names = ", ".join(f"{each.address} ({each.driver})" for each in others)
        yield (
            f"IOMMU group {group} has other devices that the kernel drives: {names}; they could reach the memory of "
            "the target and it theirs: put the disk into another slot"
        )


def _of_controller(case: Case) -> Iterator[str]:
    address = case.function.address
    if not case.function.is_nvme:
        yield f"{address} is no NVMe controller (class {case.function.class_code:06x})"
    if case.controller is not None and not controller_name(case.controller):
        yield f"{address} tells no serial number to know it by"
    for name in case.unknown:
        yield f"{address} has also {name}, which is not known as a disk: see `quarry disks list`"


def _of_disks(case: Case) -> Iterator[str]:
    for known in case.disks:
        if len(known.status.pci_addresses) > 1:
            paths = ", ".join(known.status.pci_addresses)
            yield f"{known.name} has several controllers ({paths}): it would stay with the kernel by the others"
        for reason in known.status.reasons:
            yield f"{known.name} {reason}"
    if not case.disks:
        yield f"{case.function.address} has no namespaces"
