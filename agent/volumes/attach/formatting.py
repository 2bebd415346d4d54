"""Formatting a volume once: only when it is provably blank, and safe against a crash in the middle.

Before mkfs an intent is written to this machine's journal: the volume, its lvol, and the UUID that the filesystem will
have. It goes before the first mount. So with an intent present the volume has never been mounted *here*, and what mkfs
left half-made is formatted again rather than mounted or refused for ever. The volume may have been elsewhere in the
meantime: a filesystem that may have been mounted anywhere, or has another UUID, ends the intent and stays untouched.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Collection
from pathlib import Path

from agent.errors import FailedPrecondition
from agent.host import blkid, filesystem
from agent.host.blkid import Content
from agent.host.journal import Journal
from agent.model import Volume
from agent.volumes.attach.long_work import Progress
from agent.volumes.rules.modes import Filesystem

log = logging.getLogger(__name__)


class Formatter:
    """`intents`: where the journal is, on a filesystem that survives power loss."""

    def __init__(self, intents: Path) -> None:
        self._intents = Journal(intents)

    async def ensure(
        self, volume: Volume, device: Path, wanted: Filesystem, progress: Progress, *, readonly: bool
    ) -> Content:
        """Make sure that the device carries the wanted filesystem, checked and ready to mount. Returns what was found.

        FailedPrecondition, with nothing changed, when anything else is on it, when it is blank and `readonly`, or
        when the filesystem needs a person's repair.
        """
        found = await blkid.probe_for(device, wanted.fs_type)
        remains = self._are_remains(volume, found)
        if found.blank or remains:
            if readonly:
                raise FailedPrecondition(f"volume {volume.meta.name} is blank: stage it writable once to format it")
            progress.doing(f"being formatted with {wanted.fs_type}")
            await self._format(volume, device, wanted, clear=remains)
            return found
        await self._intents.remove(volume.meta.name)
        if found.fs_type != wanted.fs_type:
            raise FailedPrecondition(
                f"volume {volume.meta.name} should carry {wanted.fs_type} but {device} has {found.description} on it; "
                "it was left as it is"
            )
        if not readonly:
            progress.doing(f"having its {wanted.fs_type} checked")
            await filesystem.check(device, wanted.fs_type, progress.reached)
        return found

    async def forget(self, volume: Volume) -> None:
        """End an intent: from now on the device may hold what its user writes to it, whatever it looks like."""
        await self._intents.remove(volume.meta.name)

    async def forget_all_but(self, volumes: Collection[str]) -> None:
        """End the intents of volumes that are no more: deleted after a crash, without having been staged again."""
        for name in set(self._intents.keys()) - set(volumes):
            await self._intents.remove(name)

    async def _format(self, volume: Volume, device: Path, wanted: Filesystem, *, clear: bool) -> None:
        filesystem_uuid = str(uuid.uuid4())
        name = volume.meta.name
        if clear:
            # The old intent stays until the new one replaces it: both cover a device with cleared ends.
            log.warning("formatting of volume %s was interrupted earlier: starting over", name)
            await blkid.clear_ends(device)
        await self._intents.write(name, {"lvol": _lvol(volume), "uuid": filesystem_uuid})
        await filesystem.make(device, wanted.fs_type, filesystem_uuid, wanted.mkfs_options)
        await self._intents.remove(name)

    def _are_remains(self, volume: Volume, found: Content) -> bool:
        """Whether what is on the device can only be what our own interrupted mkfs wrote."""
        intent = self._intents.read(volume.meta.name)
        if intent is None or intent.get("lvol") != _lvol(volume) or found.blank:
            return False
        if not found.recognized:
            return True
        return found.uuid == intent.get("uuid") and found.never_mounted


def _lvol(volume: Volume) -> str:
    return ",".join(sorted(replica.lvol_uuid for replica in volume.status.replicas))
