"""Frontends: how this machine sees a volume as a block device (design section 4)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from agent.errors import FailedPrecondition, NotFound, Unavailable
from agent.host import loop, mount
from agent.host.journal import Journal
from agent.host.nvme_host import NvmeHost
from agent.model import Endpoint, Volume
from agent.volumes.rules.names import is_volume_id, volume_nqn, volume_of_nqn


class FrontendDriver(Protocol):
    """Attach, find, detach. Each may be repeated, and repeated after a crash at any point of an earlier call."""

    async def attach(self, volume: Volume) -> Path:
        """The block device of the volume, attached now unless it is already."""
        ...

    async def detach(self, volume_id: str, volume: Volume | None) -> None:
        """Leave no device of the volume on this machine. `volume` is None when its record is gone."""
        ...

    async def abandon(self, volume_id: str) -> None:
        """End a device of which the target lets no I/O through, though a filesystem has it: what waits fails.

        Only for a volume that is no longer published to this node.
        """
        ...

    async def find(self, volume: Volume) -> Path | None:
        """The device when it is attached here."""
        ...

    async def left(self, volume_id: str) -> Path | None:
        """The device by what this machine knows alone, for a volume whose record or data may be gone."""
        ...

    async def whose(self, device: Path, likely: str) -> str | None:
        """The id of the volume whose device this is, or was; `likely` is tried first.

        "": one that may be ours, though nothing tells any more whose. None: none of ours.
        """
        ...

    async def rescan(self, volume: Volume, device: Path) -> None:
        """Make the kernel notice a changed size."""
        ...

    async def known(self) -> list[str]:
        """Ids of the volumes that may have a device on this machine."""
        ...

    async def recover(self, volume: Volume) -> None:
        """Let the volume's device go on after the target restarted, if it does not by itself."""
        ...


class NvmeTcpFrontend:
    """The kernel's NVMe/TCP host, connected straight to the volume's one replica."""

    def __init__(self, host_nqn: str, host: NvmeHost | None = None) -> None:
        self._host_nqn = host_nqn
        self._host = host or NvmeHost()

    async def attach(self, volume: Volume) -> Path:
        endpoint, lvol_uuid = _only_replica(volume)
        await self._host.connect(endpoint.nqn, endpoint.address, endpoint.port, self._host_nqn, volume.spec.connect)
        device = await self._host.wait_for_device(endpoint.nqn, lvol_uuid)
        await self._host.disconnect_others(endpoint.nqn, endpoint.address, endpoint.port)
        return device

    async def detach(self, volume_id: str, volume: Volume | None) -> None:
        if is_volume_id(volume_id):
            await self._host.disconnect(volume_nqn(volume_id))

    async def abandon(self, volume_id: str) -> None:
        if not is_volume_id(volume_id):
            return
        # A live connection still writes what it has.
        if not any(found.state == "live" for found in self._host.controllers(volume_nqn(volume_id))):
            await self._host.disconnect(volume_nqn(volume_id))

    async def find(self, volume: Volume) -> Path | None:
        # The replica may be away (target restarting); its device is found all the same.
        uuids = [replica.lvol_uuid for replica in volume.status.replicas if replica.lvol_uuid]
        return self._host.find(volume_nqn(volume.meta.name), uuids[0]) if len(uuids) == 1 else None

    async def left(self, volume_id: str) -> Path | None:
        return self._host.first(volume_nqn(volume_id)) if is_volume_id(volume_id) else None

    async def whose(self, device: Path, likely: str) -> str | None:
        nqn = self._host.subsystem_of(device.name)
        return volume_of_nqn(nqn) or None if nqn else None

    async def rescan(self, volume: Volume, device: Path) -> None:
        await self._host.rescan(volume_nqn(volume.meta.name))

    async def known(self) -> list[str]:
        return sorted({name for nqn in self._host.connected(self._host_nqn) if (name := volume_of_nqn(nqn))})

    async def recover(self, volume: Volume) -> None:
        pass  # the kernel reconnects


class LoopFrontend:
    """A loop device on the file behind the lvol: embedded target only, and only on the machine it runs on.

    `local_path` tells the file (None on a real target). `notes` keeps it, durably and before attaching, so that the
    device is found again when the volume's record is gone or the target does not answer.

    `count` has the target look at what is written past it: for the last time it can tell that somebody wrote. None:
    files that belong to no target.
    """

    def __init__(
        self,
        local_path: Callable[[str], Awaitable[Path | None]],
        notes: Path,
        count: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._local_path = local_path
        self._count = count
        self._notes = Journal(notes)

    async def attach(self, volume: Volume) -> Path:
        name = volume.meta.name
        file = await self._local_path(name)
        if file is None:
            raise FailedPrecondition("the loop frontend works with the embedded target only: use nvme-tcp")
        noted = self._noted(name)
        if noted is not None and noted != file:
            await _detach_file(noted)
        for device in await loop.find_leftovers(file):
            if not mount.uses(device):
                await loop.detach(device)
        await self._notes.write(name, {"file": str(file)})
        return await loop.attach(file)

    async def detach(self, volume_id: str, volume: Volume | None) -> None:
        file = self._noted(volume_id)
        if file is None and volume is not None:
            with suppress(NotFound):
                file = await self._local_path(volume_id)
        if file is not None:
            if self._count is not None:
                await self._count()
            await _detach_file(file)
        await self._notes.remove(volume_id)

    async def abandon(self, volume_id: str) -> None:
        pass  # a file keeps no I/O waiting

    async def find(self, volume: Volume) -> Path | None:
        file = self._noted(volume.meta.name)
        return await loop.find(file) if file is not None else None

    async def left(self, volume_id: str) -> Path | None:
        file = self._noted(volume_id)
        if file is None:
            return None
        return await loop.find(file) or next(iter(await loop.find_leftovers(file)), None)

    async def whose(self, device: Path, likely: str) -> str | None:
        if not device.name.startswith("loop"):
            return None
        found = next((each for each in await loop.devices() if each.path == device), None)
        if found is None:
            return ""  # detached by somebody else
        for name in (likely, *self._notes.keys()):
            if (file := self._noted(name)) is not None and loop.is_of(found, file):
                return name
        with suppress(NotFound, Unavailable):  # its note is lost
            if (local := await self._local_path(likely)) is not None and loop.is_of(found, local):
                return likely
        return "" if found.deleted else None

    async def rescan(self, volume: Volume, device: Path) -> None:
        await loop.rescan(device)

    async def known(self) -> list[str]:
        return self._notes.keys()

    async def recover(self, volume: Volume) -> None:
        pass  # the file stays

    def _noted(self, volume_id: str) -> Path | None:
        note = self._notes.read(volume_id)
        return Path(note["file"]) if note and "file" in note else None


async def _detach_file(file: Path) -> None:
    device = await loop.find(file)
    for found in [device] if device else []:
        await loop.detach(found)
    for leftover in await loop.find_leftovers(file):
        await loop.detach(leftover)


def _only_replica(volume: Volume) -> tuple[Endpoint, str]:
    replicas = volume.status.replicas
    if len(replicas) > 1:
        raise FailedPrecondition("a volume with several replicas cannot be attached directly")
    if not replicas or not replicas[0].ready or replicas[0].endpoint is None or not replicas[0].lvol_uuid:
        raise Unavailable(f"volume {volume.meta.name} is not exported yet; repeat the call")
    return replicas[0].endpoint, replicas[0].lvol_uuid
