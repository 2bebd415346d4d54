"""Whose a mount is: nothing but the volume's own is taken away from a path, whatever volume a call names."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

from agent.errors import FailedPrecondition
from agent.host import device as devices
from agent.host import mount
from agent.host.journal import Journal
from agent.host.mount import Mount
from agent.host.paths import CheckedPath
from agent.model import filesystems
from agent.volumes.attach.frontends import FrontendDriver

log = logging.getLogger(__name__)


class Use(StrEnum):
    STAGED = "staged"
    PUBLISHED = "published"


class Places:
    """Who has what is mounted somewhere. The device tells, where it is still there, and else the note of the path.

    A note lost is no harm: what may be the volume's and is nobody else's by any evidence counts as the volume's, since
    an own mount has to be removable whatever was lost. Notes are worth as much as mounts: nothing after the machine
    has restarted.
    """

    def __init__(self, notes: Path, frontends: Iterable[FrontendDriver]) -> None:
        self._notes = Journal(notes, durable=False)
        self._frontends = tuple(frontends)

    async def note(self, path: CheckedPath, volume_id: str, use: Use) -> None:
        """Before something is mounted at `path`."""
        note = {"path": str(path), "volume": volume_id, "use": use, "boot": devices.boot_id()}
        await self._notes.write(_key(path), note)

    async def forget(self, path: CheckedPath) -> None:
        """Nothing is there any more."""
        await self._notes.remove(_key(path))

    async def forget_old(self) -> None:
        """Notes from before the machine restarted."""
        boot = devices.boot_id()
        for key in self._notes.keys():  # noqa: SIM118 - no mapping
            if (self._notes.read(key) or {}).get("boot") != boot:
                await self._notes.remove(key)

    async def require_own(self, path: CheckedPath, found: Mount, volume_id: str, use: Use) -> None:
        """FailedPrecondition when `found`, which is mounted at `path`, is not what `use` of this volume put there."""
        noted_volume, noted_use = self._noted(path)
        if (noted_volume, noted_use) == (volume_id, use) and mount.node_number(found):
            return  # a node does not keep its device, whose number may be another volume's by now
        owner = await self._owner(found, volume_id)
        if owner == "":
            owner = noted_volume
            if not owner:
                log.warning("%s: nothing tells any more whose %s is: taken for %s", path, found.source, volume_id)
                return
        if owner != volume_id:
            whose = f"of volume {owner}" if owner else "none of Quarry's"
            raise FailedPrecondition(
                f"{path} is in use: {found.source} ({found.fs_type}) is mounted there, {whose} and not of volume "
                f"{volume_id}; it was left as it is"
            )
        if noted_volume == volume_id and noted_use != use:
            way = "NodeUnstageVolume" if noted_use == Use.STAGED else "NodeUnpublishVolume"
            raise FailedPrecondition(f"{path} is where volume {volume_id} is {noted_use}: {way} takes that away")

    async def _owner(self, found: Mount, volume_id: str) -> str | None:
        """The volume; "" when it may be any; None: none of ours."""
        number = mount.node_number(found) or found.device
        device = devices.by_number(number)
        if device is None:
            is_filesystem = found.fs_type in filesystems.SUPPORTED and found.root == "/"
            return "" if is_filesystem or mount.node_number(found) else None
        answers = [await each.whose(device, volume_id) for each in self._frontends]
        return next((answer for answer in answers if answer), "" if "" in answers else None)

    def _noted(self, path: CheckedPath) -> tuple[str, str]:
        note = self._notes.read(_key(path))
        if note is None or note.get("boot") != devices.boot_id() or note.get("path") != str(path):
            return "", ""
        return note.get("volume", ""), note.get("use", "")


def _key(path: CheckedPath) -> str:
    return hashlib.sha256(str(path).encode(errors="surrogateescape")).hexdigest()[:40]
