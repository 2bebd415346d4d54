"""NVMe disks that the target drives itself: their controllers are with a user-space driver (agent.disks.binder).

Nothing can be read from such a disk before the target has it, so what was on it is known from the note that was made
immediately before the kernel let go of it.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from agent.disks.binder import Binder
from agent.disks.binding import Binding, BoundDisk, State
from agent.errors import FailedPrecondition, NotFound, QuarryError, RpcError, Unavailable
from agent.host import blkid
from agent.model import Disk, DiskPhase
from agent.pools.access import LOAD_TIMEOUT_S, NOT_LOADED, Tell
from agent.pools.pool_size import shrunk
from agent.pools.why import Refused, Why
from agent.spdk import bdev, lvol, nvme_controller
from agent.spdk.client import Rpc

log = logging.getLogger(__name__)

RECOVERY_TIMEOUT_S = 60.0
"""How long to wait until the controllers are where their notes say: after a reboot all disks are looked at first."""

LET_GO_TIMEOUT_S = 15.0
LET_GO_POLL_S = 0.1

_BDEV = re.compile(r"(.+)n\d+")


class Recovery:
    """Brings the controllers to where their notes say, once all disks are known. `done` is set then, whatever came."""

    def __init__(self, binder: Binder, discovered: asyncio.Event) -> None:
        self._binder = binder
        self._discovered = discovered
        self.done = asyncio.Event()

    async def run(self) -> None:
        try:
            if self._binder.has_notes:
                await self._discovered.wait()
                await self._binder.recover()
        except QuarryError as error:
            log.error("disks with a user-space driver are left as they are: %s", error)
        finally:
            self.done.set()


class UserspaceAccess:
    """Implements `DiskAccess` for the disks that `binder` has notes of, once `recovered` is set.

    `embedded`: the target is the one for development, which serves regular files only.
    """

    def __init__(self, rpc: Rpc, binder: Binder, recovered: asyncio.Event, *, embedded: bool) -> None:
        self._rpc = rpc
        self._binder = binder
        self._recovered = recovered
        self._embedded = embedded
        self._turns: dict[str, asyncio.Lock] = {}

    async def attach(self, disk: Disk) -> None:
        if self._embedded:
            raise Refused(
                Why.NO_DRIVER,
                f"{disk.status.path} needs spdk_tgt: the embedded target serves regular files only. "
                "Start spdk_tgt and name its socket by --spdk-socket",
            )
        binding, bound = await self._find(disk)
        name = binding.bdev(bound)
        # One call attaches all namespaces of a controller.
        async with self._turns.setdefault(binding.name, asyncio.Lock()):
            if await bdev.get(self._rpc, name) is None:
                await self._attach(binding, name)
            await self._require_same(binding, bound)

    async def require_blank(self, disk: Disk) -> None:
        binding, bound = await self._find(disk)
        if disk.status.phase is DiskPhase.FORMATTING:
            # Found blank before. From here on it is not known to be, should all records of the pool be lost.
            if not bound.used:
                await self._binder.mark(disk.meta.name, used=True)
            return
        if not bound.blank:
            what = "something of the target's" if bound.used else ", ".join(bound.status.signatures) or "something"
            raise Refused(
                Why.INELIGIBLE,
                f"{binding.shown_as(bound)} carries {what} and is not blank; it is left alone. To look at it: "
                f"`quarry disks unbind {binding.address}`",
            )

    async def zero(self, disk: Disk, start: int, end: int, tell: Tell) -> bool:
        """The target does it, by Write Zeroes where the disk has that."""
        return False

    async def detach(self, disk: Disk) -> None:
        """The controller goes as a whole: not while a pool of another of its namespaces is in use."""
        match = _BDEV.fullmatch(disk.status.bdev)
        if match is None:
            return
        name = match[1]
        async with self._turns.setdefault(name, asyncio.Lock()):
            others = [other for other in self._bdevs(name) if other != disk.status.bdev]
            found = await asyncio.gather(*(bdev.get(self._rpc, other) for other in others))
            if any(each is not None and each.claimed for each in found):
                return
            try:
                await nvme_controller.detach(self._rpc, name)
            except RpcError:
                if await nvme_controller.get(self._rpc, name) is not None:
                    raise

    async def explain(self, disk: Disk) -> str:
        return shrunk(disk, disk.status.size_bytes) or NOT_LOADED

    async def wipe(self, disk: Disk) -> None:
        """The kernel gets the disk for as long as it takes, unless another namespace of its controller is in use."""
        binding, bound = await self._find(disk)
        if await nvme_controller.get(self._rpc, binding.name) is None:
            await self._wipe_by_kernel(disk, binding)
        else:
            await self._wipe_by_target(disk, binding.bdev(bound))

    async def _wipe_by_kernel(self, disk: Disk, binding: Binding) -> None:
        """When the agent dies in between, the kernel has the disk, and the release goes on there."""
        names = await self._given_back(binding)
        found = await self._binder.look(disk.meta.name, names)
        if found.pool is not None and found.pool.uuid == disk.status.pool.uuid:
            await blkid.remove_pool(Path(found.status.path), found.pool)
            found = await self._binder.look(disk.meta.name, names)
        await self._binder.bind(found, binding.driver)

    async def _given_back(self, binding: Binding) -> Sequence[str]:
        """A target that was told to detach a controller lets go of it a little later."""
        deadline = asyncio.get_running_loop().time() + LET_GO_TIMEOUT_S
        while True:
            try:
                return await self._binder.unbind(binding)
            except FailedPrecondition:
                if asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(LET_GO_POLL_S)

    async def _wipe_by_target(self, disk: Disk, name: str) -> None:
        """What is left is only what the target wrote: enough for a new pool, not for the eyes of the kernel."""
        found = await lvol.get_lvstore(self._rpc, disk.pool_name)
        if found is not None and found.uuid == disk.status.pool.uuid and found.base_bdev == name:
            await lvol.delete_lvstore(self._rpc, disk.pool_name)
        await self._binder.mark(disk.meta.name, used=False)

    async def _find(self, disk: Disk) -> tuple[Binding, BoundDisk]:
        try:
            await asyncio.wait_for(self._recovered.wait(), RECOVERY_TIMEOUT_S)
            binding, bound = self._binder.find(disk.meta.name)
        except TimeoutError:
            raise Unavailable("the disks of this machine are still being looked at") from None
        except NotFound as error:
            raise Unavailable(f"disk {disk.meta.name} is with no user-space driver") from error
        if binding.state is not State.BOUND:
            raise Unavailable(f"{binding.address} is on its way to or from driver {binding.driver}")
        return binding, bound

    async def _attach(self, binding: Binding, name: str) -> None:
        try:
            await nvme_controller.attach_pcie(self._rpc, binding.name, binding.address, timeout_s=LOAD_TIMEOUT_S)
        except RpcError as error:
            if await bdev.get(self._rpc, name) is None:
                raise Unavailable(
                    f"the target cannot drive {binding.address}: {error}; the module {binding.driver} has to be loaded "
                    "before the target is started"
                ) from error

    async def _require_same(self, binding: Binding, bound: BoundDisk) -> None:
        """The target's word on what it drives: another disk may have been put into the slot."""
        found = await bdev.get(self._rpc, binding.bdev(bound))
        if found is None:
            raise Unavailable(f"{binding.address} has no namespace {bound.nsid}")
        told = found.driver_specific.nvme[0] if found.driver_specific.nvme else bdev.NvmePart()
        serial, address = told.ctrlr_data.serial_number.strip(), told.trid.traddr or told.pci_address
        if serial != bound.status.serial.strip() or address != binding.address:
            await nvme_controller.detach(self._rpc, binding.name)
            raise Refused(
                Why.INELIGIBLE,
                f"{binding.address} is a disk with serial number {serial!r}, not {bound.status.serial!r}: "
                f"`quarry disks unbind {binding.address}`",
            )

    def _bdevs(self, name: str) -> list[str]:
        """Of all namespaces of a controller."""
        return [each.bdev(disk) for each in self._binder.bindings() if each.name == name for disk in each.disks]
