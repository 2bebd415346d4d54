"""Moves NVMe controllers between the kernel's driver and those for programs, and remembers which are away.

A note is written first, and the last step of each move is another one: whatever dies in between, the next start looks
at the note and at the function and finishes the move or takes it back (`recover`).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import msgspec

from agent.disks import binding as rules
from agent.disks.binding import Action, Binding, BoundDisk, Case, Driver, State, Step
from agent.disks.eligibility import Code
from agent.disks.hold import Hold
from agent.disks.inventory import Inventory, Known
from agent.disks.pci import KERNEL_DRIVER, Pci
from agent.errors import Busy, DeadlineExceeded, FailedPrecondition, NotFound, QuarryError, Unavailable
from agent.host import device
from agent.host.journal import Journal
from agent.host.openers import openers
from agent.model import DiskDriver, DiskPhase

log = logging.getLogger(__name__)

FOLDER = "bindings"
"""Of the notes, in the state folder."""

APPEAR_TIMEOUT_S = 30.0
"""From the kernel's driver taking a controller to its namespaces being there."""

_POLL_S = 0.05
_NOTE = "binding"


class Holding(Protocol):
    def close(self) -> None: ...


class Binder:
    """The controllers of this machine that `folder` has notes of. `inventory` is looked at again before any change.

    Raises FailedPrecondition with all reasons and what to do about them, Unavailable when the kernel refuses, Busy
    while another process moves a controller.
    """

    def __init__(
        self,
        folder: Path,
        inventory: Inventory,
        pci: Pci | None = None,
        *,
        journal: Journal | None = None,
        hold: Callable[[str], Awaitable[Holding]] = Hold.take,
        boot_id: Callable[[], str] = device.boot_id,
    ) -> None:
        self._folder = folder
        self._journal = journal or Journal(folder)
        self._inventory = inventory
        self._pci = pci or Pci()
        self._hold = hold
        self._boot_id = boot_id

    def bindings(self) -> list[Binding]:
        """All notes, by what they say of themselves: also of a move that was cut off."""
        found = (_decoded(self._journal.read(key)) for key in self._keys())
        return [each for each in found if each is not None]

    @property
    def has_notes(self) -> bool:
        """Whether there are any, also of what was cut off before it began."""
        return bool(self._keys())

    def find(self, identity: str) -> tuple[Binding, BoundDisk]:
        """The disk and its controller. NotFound when the kernel has it, or nobody."""
        for binding in self.bindings():
            for disk in binding.disks:
                if disk.identity == identity:
                    return binding, disk
        raise NotFound("disk with a user-space driver", identity)

    async def mark(self, identity: str, *, used: bool) -> None:
        """Note durably that the target is about to write to the disk, or that it has made it blank again."""
        binding, disk = self.find(identity)
        status = disk.status if used else replace(disk.status, signatures=())
        disks = [replace(each, used=used, status=status) if each == disk else each for each in binding.disks]
        await self._journal.write(binding.name, _encoded(replace(binding, disks=tuple(disks))))

    async def plan(self, known: Known, driver: Driver) -> tuple[Binding, tuple[Step, ...]]:
        """Look at the disk's whole controller again and say what binding it would do. Changes nothing."""
        case = await self._case(known, driver)
        if reasons := rules.refusals(case, driver):
            raise FailedPrecondition(f"{known.name} stays with the kernel: {'; '.join(reasons)}")
        return self._binding(case, driver), rules.steps_to_bind(case.function, driver)

    async def bind(self, known: Known, driver: Driver) -> Binding:
        """Give the disk's controller to `driver`, with all its namespaces.

        They are held exclusively from before the last look at them until the kernel has let go of them.
        """
        async with self._turn(), contextlib.AsyncExitStack() as holds:
            await self._hold_all(known, holds)
            binding, steps = await self.plan(known, driver)
            # Let go of only once the kernel did: nobody can mount one of them between the look and that.
            await self._carry_out(binding, steps)
        log.info("%s is at driver %s now: %s", binding.address, driver, _names(binding))
        return replace(binding, state=State.BOUND)

    def plan_return(self, binding: Binding) -> tuple[Step, ...]:
        """What giving the controller back would do. Changes nothing."""
        function = self._pci.function(binding.address)
        if function is None:
            return (Step(Action.FORGET, binding.address),)
        users = openers(self._pci.nodes(binding.address)) if function.driver == binding.driver else []
        if users:
            raise FailedPrecondition(
                f"{binding.address} is in use by {', '.join(map(str, users))}: release its disks and detach the "
                "controller from the target, or stop the target"
            )
        return rules.steps_to_return(function)

    async def unbind(self, binding: Binding) -> tuple[str, ...]:
        """Give the controller back to the kernel's driver. Returns the kernel's names of its namespaces."""
        async with self._turn():
            await self._carry_out(binding, self.plan_return(binding))
            names = await self._appeared(binding)
        log.info("%s is at the kernel's driver again: %s", binding.address, ", ".join(names) or "no namespaces")
        return names

    async def look(self, identity: str, names: Sequence[str]) -> Known:
        """Look now at the disk, which is one of these block devices. NotFound when it is none."""
        usage = await self._inventory.usage()
        for name in names:
            await self._inventory.look(name, usage)
            found = self._inventory.known.get(name)
            if found is not None and found.identity == identity:
                return found
        raise NotFound("disk", identity)

    async def recover(self) -> None:
        """Finish or take back what was cut off, and bind again what the kernel has taken since (a reboot).

        For that every disk is looked at as for a new binding, wherever it is now. What cannot be bound stays with the
        kernel, and the log says why.
        """
        for key in self._keys():
            binding = _decoded(self._journal.read(key))
            if binding is None:  # cut off before it was written, so before anything was done
                await self._journal.remove(key)
                continue
            try:
                async with self._turn():
                    function = self._pci.function(binding.address)
                    steps = rules.steps_to_settle(binding, function, self._boot_id())
                    if steps:
                        await self._carry_out(binding, steps)
                if steps is None:
                    await self._bind_again(binding)
            except QuarryError as error:
                log.error("controller %s (%s): %s", binding.name, binding.address, error)

    async def _bind_again(self, binding: Binding) -> None:
        wanted = {disk.identity for disk in binding.disks}
        found = [known for known in self._inventory.known.values() if known.identity in wanted]
        if not found:
            raise NotFound("controller", binding.name)
        await self.bind(found[0], binding.driver)

    def _keys(self) -> list[str]:
        try:
            return self._journal.keys()
        except PermissionError as error:
            raise FailedPrecondition(f"{self._folder} cannot be read: run this as root") from error

    # --- looking ---

    async def _case(self, known: Known, driver: Driver) -> Case:
        address = _address(known)
        function, controller = self._pci.function(address), self._pci.controller(address)
        if function is None:
            raise NotFound("PCI function", address)
        usage = await self._inventory.usage()
        disks, unknown = list[Known](), list[str]()
        for name in self._namespaces(known):
            await self._inventory.look(name, usage)
            found = self._inventory.known.get(name)
            if found is None:
                unknown.append(name)
            elif all(reason.code is not Code.PATH for reason in found.reasons):
                disks.append(found)
        if known.identity not in {disk.identity for disk in disks}:
            raise Unavailable(f"{known.name} became another device while it was looked at")
        return Case(
            function,
            self._pci.neighbours(function),
            controller,
            tuple(disks),
            tuple(unknown),
            self._pci.has_driver(driver),
            self._pci.allows_no_iommu,
            self._pci.translates(function),
        )

    def _namespaces(self, known: Known) -> list[str]:
        """Those of the disk's controller: as the controller tells, and all disks that tell its address."""
        address = _address(known)
        controller = self._pci.controller(address)
        told = set(controller.namespaces if controller else ())
        told |= {each.name for each in self._inventory.known.values() if address in each.status.pci_addresses}
        return sorted(told)

    def _binding(self, case: Case, driver: Driver) -> Binding:
        controller = case.controller
        name = rules.controller_name(controller) if controller else ""
        if not name:
            raise Unavailable(f"{case.function.address} is no controller any more")
        disks = []
        for known in case.disks:
            nsid = self._pci.nsid(known.name)
            if not nsid:
                raise Unavailable(f"{known.name} tells no namespace id")
            disks.append(BoundDisk(known.identity, nsid, known.status))
        return Binding(
            name, State.BINDING, case.function.address, driver, case.function.ids, self._boot_id(), tuple(disks)
        )

    async def _hold_all(self, known: Known, holds: contextlib.AsyncExitStack) -> None:
        """Those that do not even open are the look's to refuse, with better words."""
        for name in self._namespaces(known):
            each = self._inventory.known.get(name)
            if each is None or not each.status.eligible:
                continue
            holds.callback((await self._hold(each.status.path)).close)

    # --- doing ---

    async def _carry_out(self, binding: Binding, steps: Sequence[Step]) -> None:
        for step in steps:
            await self._step(binding, step)

    async def _step(self, binding: Binding, step: Step) -> None:
        log.debug("%s", step)
        match step.action:
            case Action.NOTE:
                note = replace(binding, state=State(step.value), boot_id=self._boot_id())
                await self._journal.write(binding.name, _encoded(note))
            case Action.FORGET:
                await self._journal.remove(binding.name)
            case Action.OVERRIDE:
                await asyncio.to_thread(self._pci.override, step.address, step.value)
            case Action.UNBIND:
                await asyncio.to_thread(self._pci.unbind, step.address)
            case Action.PROBE:
                await self._probe(binding, step)

    async def _probe(self, binding: Binding, step: Step) -> None:
        problem = ""
        try:
            await asyncio.to_thread(self._pci.probe, step.address)
        except Unavailable as error:
            problem = f" ({error})"
        function = self._pci.function(step.address)
        if function is not None and function.driver == step.value:
            return
        text = f"driver {step.value} did not take {step.address}{problem}: see `dmesg`"
        if function is None or step.value == KERNEL_DRIVER:
            raise Unavailable(text)
        await self._carry_out(binding, rules.steps_to_return(function))
        raise Unavailable(f"{text}; the kernel has it again")

    async def _appeared(self, binding: Binding) -> tuple[str, ...]:
        """The namespaces of a controller that was given back, once the kernel has found them."""
        function = self._pci.function(binding.address)
        if function is None or function.driver != KERNEL_DRIVER:
            return ()
        deadline = asyncio.get_running_loop().time() + APPEAR_TIMEOUT_S
        while True:
            controller = self._pci.controller(binding.address)
            names = controller.namespaces if controller else ()
            if len(names) >= len(binding.disks):
                return names
            if asyncio.get_running_loop().time() > deadline:
                raise DeadlineExceeded(
                    f"{binding.address} is at the kernel's driver, but shows {len(names)} of {len(binding.disks)} "
                    f"namespaces after {APPEAR_TIMEOUT_S:g} s: see `dmesg`"
                )
            await asyncio.sleep(_POLL_S)

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One process at a time moves controllers: the agent, or a command. The lock goes with the process."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise FailedPrecondition(f"no notes can be kept in {self._folder}: {error.strerror}") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy("another process is moving a controller; repeat the call") from None
            yield
        finally:
            os.close(descriptor)


def away(bindings: Iterable[Binding]) -> dict[str, Known]:
    """The disks that the kernel does not have, by identity."""
    return {known.identity: known for binding in bindings for known in as_known(binding)}


def as_known(binding: Binding) -> list[Known]:
    """The disks of a controller that is away, as they are shown: as they were seen last."""
    found = []
    for disk in binding.disks:
        status = replace(
            disk.status,
            path=binding.shown_as(disk),
            links=(),
            pci_addresses=(binding.address,),
            driver=DiskDriver.USERSPACE,
            bdev=binding.bdev(disk),
            phase=DiskPhase.AVAILABLE,
            message=f"with driver {binding.driver}"
            if binding.state is State.BOUND
            else f"on its way to or from driver {binding.driver}",
        )
        found.append(Known(binding.shown_as(disk), disk.identity, status))
    return found


def _address(known: Known) -> str:
    """Of the disk's controller. FailedPrecondition for what is no NVMe disk on the PCI bus."""
    status = known.status
    if status.transport != "nvme" or not status.pci_addresses:
        raise FailedPrecondition(
            f"{known.name} is reached by {status.transport}: only NVMe disks on the PCI bus have a driver in user "
            "space; others are used through the kernel"
        )
    return status.pci_addresses[0]


def _names(binding: Binding) -> str:
    return ", ".join(f"{binding.shown_as(disk)} is {disk.identity}" for disk in binding.disks)


def _encoded(binding: Binding) -> dict[str, str]:
    return {_NOTE: msgspec.json.encode(binding).decode()}


def _decoded(note: dict[str, str] | None) -> Binding | None:
    try:
        return msgspec.json.decode(note.get(_NOTE, ""), type=Binding) if note else None
    except msgspec.MsgspecError:
        return None
