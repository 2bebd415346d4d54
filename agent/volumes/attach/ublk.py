"""The frontend `ublk`: a volume as a block device that the target on this machine serves without a network between.

The target forgets its devices when it dies, the kernel does not: it holds what is written back until another server
takes the device over. So which device is which volume's is noted here, durably and before it is made.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from agent.errors import FailedPrecondition, QuarryError, ResourceExhausted, RpcError, Unavailable
from agent.host import device as devices
from agent.host import ublk
from agent.host.journal import Journal
from agent.host.ublk import State
from agent.model import Volume
from agent.spdk import ublk as rpc_ublk
from agent.spdk.client import Rpc
from agent.tasks.guard import VolumeGuard

STATE_TIMEOUT_S = 15.0
"""How long a device may take to be served, and a killed target to let go of it."""
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class _Device:
    """A note. `identity` is empty until the device is known to have been made."""

    id: int
    lvol: str
    identity: str = ""

    @property
    def present(self) -> bool:
        """The kernel has it, and it is the same as when it was made."""
        return bool(self.identity) and ublk.identity(self.id) == self.identity

    @property
    def usable(self) -> bool:
        """It is a block device, which it is no longer once it was stopped."""
        return self.present and ublk.path(self.id).exists()


class UblkFrontend:
    """Needs a real target on this machine, and a volume whose one replica is here.

    That this agent alone starts devices, and only for volumes that are published to this node, is the fence: an lvol is
    never reachable over NVMe-oF at the same time, since the plan of such a volume has no subsystem.
    """

    def __init__(self, rpc: Rpc, node_name: str, notes: Path, boot_id: str | None = None) -> None:
        self._rpc = rpc
        self._node_name = node_name
        self._notes = Journal(notes)
        self._boot_id = boot_id or devices.boot_id()
        self._guard = VolumeGuard()
        self._choosing = asyncio.Lock()
        self.on_served: Callable[[str], None] = lambda volume_id: None
        """Called when a volume has a device: from now on its limits can be changed."""

    async def attach(self, volume: Volume) -> Path:
        ublk.require()
        lvol = self._local_lvol(volume)
        name = volume.meta.name
        async with self._guard.hold(name):
            found = await self._made(name)
            if found is None or found.lvol != lvol or (found.present and not found.usable):
                await self._remove(name)
                found = await self._start(name, lvol)
            elif found.present:
                await self._serve(found)
            await self._wait_for(found.id, lambda info: info is not None and info.state is State.LIVE)
            await ublk.refuse_discards(found.id)  # decision 0022
            if not found.identity:
                await self._note(name, _Device(found.id, lvol, ublk.identity(found.id)))
            self.on_served(name)
            return ublk.path(found.id)

    def is_served(self, volume_id: str) -> bool:
        """Whether the volume has a device, of this target or, until it is taken over, of one that died."""
        noted = self._noted(volume_id)
        return noted is not None and noted.usable

    async def detach(self, volume_id: str, volume: Volume | None) -> None:
        async with self._guard.hold(volume_id):
            await self._remove(volume_id)

    async def abandon(self, volume_id: str) -> None:
        async with self._guard.hold(volume_id):
            noted = self._noted(volume_id)
            if noted is None or not noted.present:
                return
            info = await ublk.info(noted.id)
            if info is not None and info.state is not State.LIVE:  # a live one still writes what it has
                await ublk.stop(noted.id)

    async def find(self, volume: Volume) -> Path | None:
        noted = self._noted(volume.meta.name)
        return ublk.path(noted.id) if noted is not None and noted.usable else None

    async def left(self, volume_id: str) -> Path | None:
        noted = self._noted(volume_id)
        return ublk.path(noted.id) if noted is not None and noted.usable else None

    async def whose(self, device: Path, likely: str) -> str | None:
        if not device.name.startswith("ublkb"):
            return None
        for name in (likely, *self._notes.keys()):
            if await self.left(name) == device:
                return name
        return ""

    async def rescan(self, volume: Volume, device: Path) -> None:
        if devices.size_bytes(device) < max(volume.status.size_bytes, volume.spec.size_bytes):
            raise FailedPrecondition(
                f"a ublk device keeps the size with which it was attached: volume {volume.meta.name} has its new one "
                "when it is staged next"
            )

    async def known(self) -> list[str]:
        return self._notes.keys()

    async def recover(self, volume: Volume) -> None:
        """Serve the volume's device again after the target died; it has none, or it is served: nothing happens."""
        noted = self._noted(volume.meta.name)
        if noted is None or not any(each.node == self._node_name for each in volume.spec.attachments):
            return
        async with self._guard.hold(volume.meta.name):
            noted = self._noted(volume.meta.name)
            if noted is not None and noted.usable:
                await self._serve(noted)

    # --- inside ----------------------------------------------------------------------------------------------

    def _local_lvol(self, volume: Volume) -> str:
        """UUID of the replica on this node, which is also the name of its bdev."""
        here = next((each.name for each in volume.spec.placement if each.node == self._node_name), None)
        if here is None or len(volume.spec.placement) != 1:
            raise FailedPrecondition("the ublk frontend serves volumes whose one replica is on this node: use nvme-tcp")
        found = next((each for each in volume.status.replicas if each.name == here), None)
        if found is None or not found.ready or not found.lvol_uuid:
            raise Unavailable(f"volume {volume.meta.name} is not ready yet; repeat the call")
        return found.lvol_uuid

    async def _start(self, name: str, lvol: str) -> _Device:
        async with self._choosing:
            served = await self._list()
            already = next((each.id for each in served if each.bdev_name == lvol), None)
            if already is not None:
                return _Device(already, lvol)
            keys = self._notes.keys()
            noted = {found.id for key in keys if (found := self._noted(key))}
            # An id that only the kernel has would be refused, and its device removed.
            taken = {each.id for each in served} | noted | ublk.used()
            chosen = _Device(next(number for number in range(1, len(taken) + 2) if number not in taken), lvol)
            await self._note(name, chosen)
        try:
            await self._with_target(lambda: rpc_ublk.start_disk(self._rpc, lvol, chosen.id))
        except RpcError as error:
            now = await rpc_ublk.get(self._rpc, chosen.id)
            if now is None or now.bdev_name != lvol:
                await self._notes.remove(name)
                raise _refusal(error) from error
        return chosen

    async def _serve(self, device: _Device) -> None:
        """Take over a device from a target that died. FailedPrecondition when the new one has no ublk."""
        try:
            now = await rpc_ublk.get(self._rpc, device.id)
        except RpcError as error:
            raise _refusal(error) from error
        if now is not None:
            if now.bdev_name != device.lvol:
                raise Unavailable(f"{ublk.path(device.id)} is being served with another volume; repeat the call")
            return
        # A device that cannot be taken over yet would be removed by the attempt.
        await self._wait_for(device.id, lambda info: info is None or (info.state is State.QUIESCED and not info.served))
        await self._with_target(lambda: rpc_ublk.recover_disk(self._rpc, device.lvol, device.id))
        await self._wait_for(device.id, lambda info: info is None or info.state is State.LIVE)
        if not device.present:
            raise Unavailable(f"{ublk.path(device.id)} could not be taken over and is gone; stage the volume again")

    async def _remove(self, name: str) -> None:
        """Leave neither device nor note."""
        noted = self._noted(name)
        if noted is not None:
            try:
                now = await rpc_ublk.get(self._rpc, noted.id)
            except Unavailable:
                # What serves nobody any more needs no target to go: one that comes back does not know the device.
                info = await ublk.info(noted.id)
                if info is not None and (info.served or info.state is State.LIVE):
                    raise
                now = None
            except RpcError as error:
                if error.code != rpc_ublk.METHOD_NOT_FOUND:
                    raise
                now = None
            if now is not None and now.bdev_name == noted.lvol:
                await rpc_ublk.stop_disk(self._rpc, noted.id)
            elif noted.present:
                await self._wait_for(noted.id, lambda info: info is None or info.state is not State.LIVE)
                await ublk.delete(noted.id)
        await self._notes.remove(name)

    async def _made(self, name: str) -> _Device | None:
        """What a note tells of, if it is still there: made, or being made by the target."""
        noted = self._noted(name)
        if noted is None or noted.present:
            return noted
        now = None if noted.identity else await rpc_ublk.get(self._rpc, noted.id)
        return noted if now is not None and now.bdev_name == noted.lvol else None

    async def _list(self) -> list[rpc_ublk.DiskInfo]:
        try:
            return await rpc_ublk.list_all(self._rpc)
        except RpcError as error:
            raise _refusal(error) from error

    async def _with_target(self, call: Callable[[], Awaitable[None]]) -> None:
        """`call`, and once more after opening the kernel's driver when that was not open yet."""
        try:
            return await call()
        except RpcError as error:
            if error.code != -errno.ENODEV:
                raise
        opening: RpcError | None = None
        try:
            await rpc_ublk.create_target(self._rpc)
        except RpcError as error:
            opening = error
        try:
            await call()
        except RpcError as error:
            raise (opening if opening is not None and error.code == -errno.ENODEV else error) from error

    async def _wait_for(self, ublk_id: int, wanted: Callable[[ublk.Info | None], bool]) -> None:
        deadline = time.monotonic() + STATE_TIMEOUT_S
        while not wanted(found := await ublk.info(ublk_id)):
            if time.monotonic() > deadline:
                state = found.state.name.lower() if found else "not there"
                raise Unavailable(f"{ublk.path(ublk_id)} is still {state}; repeat the call")
            await asyncio.sleep(_POLL_S)

    def _noted(self, name: str) -> _Device | None:
        note = self._notes.read(name)
        if note is None or note.get("boot") != self._boot_id:  # no device outlives the kernel
            return None
        return _Device(int(note["id"]), note["lvol"], note.get("identity", ""))

    async def _note(self, name: str, device: _Device) -> None:
        note = {"id": str(device.id), "lvol": device.lvol, "identity": device.identity, "boot": self._boot_id}
        await self._notes.write(name, note)


def noted_devices(notes: Path) -> dict[str, str]:
    """The volumes that have a ublk device on this machine now, by the device's kernel name."""
    journal, boot_id, found = Journal(notes), devices.boot_id(), dict[str, str]()
    for volume in journal.keys():  # noqa: SIM118 - no mapping
        note = journal.read(volume)
        if note and note.get("boot") == boot_id and note.get("identity"):
            number = int(note["id"])
            if ublk.identity(number) == note["identity"]:
                found[ublk.path(number).name] = volume
    return found


def _refusal(error: RpcError) -> QuarryError:
    if error.code == rpc_ublk.METHOD_NOT_FOUND:
        return FailedPrecondition("this target has no ublk (it takes spdk_tgt, which polls): use the frontend nvme-tcp")
    if error.method == "ublk_create_target":
        return FailedPrecondition(
            f"the target cannot open {ublk.CONTROL} ({error.message}): it has to run on this machine, with access to it"
        )
    if error.code == -errno.ENOTSUP:
        return ResourceExhausted(
            "the kernel's limit of ublk devices is reached: see the parameter ublks_max of ublk_drv"
        )
    if error.code == -errno.EBUSY:
        return Unavailable("the number of the device was taken meanwhile; repeat the call")
    return error
