"""Filesystems that are smaller than their volume: a clone's, or one that was nowhere mounted when its volume grew.

They are grown when they are staged. One that cannot grow is mounted at its size, and its volume's condition says so.
"""

from __future__ import annotations

import logging
from pathlib import Path

from agent.errors import CommandFailed, FailedPrecondition, OutOfRange, QuarryError
from agent.host import blkid, filesystem, mount_options
from agent.host import device as devices
from agent.host.blkid import Content
from agent.host.filesystem import Usage
from agent.host.paths import CheckedPath
from agent.model import Volume
from agent.volumes.attach.long_work import Progress
from agent.volumes.rules.modes import Filesystem

log = logging.getLogger(__name__)

SLACK_BYTES = 16 << 20
"""A filesystem is grown at stage only when this much is missing: sizes never match to the byte."""
_REMEDY = "what is on it can be copied to a new volume of that size"


class Growth:
    """Remembers of each volume whether its filesystem has stayed behind; looks when it does not know."""

    def __init__(self) -> None:
        self._behind: dict[str, str] = {}

    async def begin(
        self, volume: Volume, device: Path, mode: Filesystem, found: Content, progress: Progress, *, readonly: bool
    ) -> bool:
        """Before the filesystem `found` is mounted. Returns whether it is to be grown once it is."""
        self.forget(volume.meta.name)
        size_bytes = devices.size_bytes(device)
        if readonly or not 0 < found.filesystem_bytes < size_bytes - SLACK_BYTES:
            return False
        if mount_options.is_readonly(mode.mount_flags) or filesystem.can_grow_mounted(mode.fs_type):
            return not mount_options.is_readonly(mode.mount_flags)
        progress.doing("having its filesystem grown")
        try:
            await filesystem.grow_unmounted(device, progress.reached)
        except CommandFailed as error:
            self._stays_behind(volume, found.filesystem_bytes, size_bytes, error)
            # Given up halfway it may need a repair, which is told if it is a person's.
            await filesystem.check(device, mode.fs_type, progress.reached, full=True)
        return False

    async def finish(
        self, volume: Volume, device: Path, mode: Filesystem, path: CheckedPath, progress: Progress
    ) -> None:
        """Once it is mounted at `path`."""
        progress.doing("having its filesystem grown")
        try:
            await filesystem.grow(device, mode.fs_type, path.real)
        except (CommandFailed, FailedPrecondition) as error:
            has_bytes = await blkid.filesystem_bytes(device)
            self._stays_behind(volume, has_bytes, devices.size_bytes(device), error)

    async def now(self, volume: Volume, device: Path, fs_type: str, mounted_at: Path) -> None:
        """Grow one in use. OutOfRange when it cannot be of the volume's size, ever."""
        try:
            await filesystem.grow(device, fs_type, mounted_at)
        except CommandFailed as error:
            size_bytes = devices.size_bytes(device)
            self._stays_behind(volume, await blkid.filesystem_bytes(device), size_bytes, error)
            raise OutOfRange(f"volume {volume.meta.name}: {self._behind[volume.meta.name]}") from error
        except FailedPrecondition as error:  # may not while it is mounted: grown when it is staged, if that can be
            if known := self._behind.get(volume.meta.name):
                raise OutOfRange(f"volume {volume.meta.name}: {known}") from error
            raise
        self._behind[volume.meta.name] = ""

    async def problem(self, volume: Volume, device: Path, usage: Usage) -> str:
        """What is wrong with its size; "" when nothing is. Looks at the device once in the life of this agent."""
        name, size_bytes = volume.meta.name, devices.size_bytes(device)
        if name not in self._behind:
            self._behind[name] = ""
            if usage.total_bytes < size_bytes - SLACK_BYTES:
                try:
                    has_bytes = await blkid.filesystem_bytes(device)
                except QuarryError:  # its target is away: asked again next time
                    del self._behind[name]
                    return ""
                if 0 < has_bytes < size_bytes - SLACK_BYTES:
                    self._behind[name] = _sizes(has_bytes, size_bytes)
        return self._behind[name]

    def forget(self, volume: str) -> None:
        """It is staged anew, or no longer here."""
        self._behind.pop(volume, None)

    def _stays_behind(self, volume: Volume, has_bytes: int, size_bytes: int, error: QuarryError) -> None:
        said = error.stderr.strip().splitlines() if isinstance(error, CommandFailed) else [str(error)]
        why = f" and could not be grown ({said[-1]})" if said else ""
        self._behind[volume.meta.name] = _sizes(has_bytes, size_bytes, why)
        log.warning("volume %s: %s", volume.meta.name, self._behind[volume.meta.name])


def _sizes(has_bytes: int, size_bytes: int, why: str = "") -> str:
    return f"its filesystem has {has_bytes} of its {size_bytes} bytes{why}; {_REMEDY}"
