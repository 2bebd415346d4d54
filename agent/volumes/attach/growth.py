"""Filesystems that are smaller than their volume: a clone's, or one that was nowhere mounted when its volume grew.

They are grown when they are staged. One that cannot grow is mounted at its size, and its volume's condition says so.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from agent.errors import CommandFailed, FailedPrecondition, OutOfRange, QuarryError
from agent.host import device as devices
from agent.host import filesystem, mount_options
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
_NOT_TRIED = "it is grown when the volume is staged next (stop its Pod), if it can be"


@dataclass(frozen=True, slots=True)
class _Known:
    problem: str
    """Empty: it is of its volume's size."""
    total_bytes: int = 0
    """What it offered when that was seen; 0: not seen yet."""


class Growth:
    """Remembers of each volume whether its filesystem has stayed behind; looks when it does not know."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}

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
            has_bytes = await filesystem.mounted_bytes(device, mode.fs_type, path.real)
            self._stays_behind(volume, has_bytes, devices.size_bytes(device), error)
        else:
            self._known[volume.meta.name] = _Known("")

    async def now(self, volume: Volume, device: Path, fs_type: str, mounted_at: Path) -> None:
        """Grow one in use. OutOfRange when it cannot be of the volume's size, ever."""
        try:
            await filesystem.grow(device, fs_type, mounted_at)
        except CommandFailed as error:
            size_bytes = devices.size_bytes(device)
            self._stays_behind(volume, await filesystem.mounted_bytes(device, fs_type, mounted_at), size_bytes, error)
            raise OutOfRange(f"volume {volume.meta.name}: {self._known[volume.meta.name].problem}") from error
        except FailedPrecondition as error:  # may not while it is mounted: grown when it is staged, if that can be
            known = self._known.get(volume.meta.name)
            if known is not None and known.problem:
                raise OutOfRange(f"volume {volume.meta.name}: {known.problem}") from error
            raise
        self._known[volume.meta.name] = _Known("")

    async def problem(self, volume: Volume, device: Path, fs_type: str, mounted_at: Path, usage: Usage) -> str:
        """What is wrong with its size; "" when nothing is. Looks once in the life of this agent, and when it grew."""
        name = volume.meta.name
        known = self._known.get(name)
        if known is not None and known.problem and known.total_bytes not in (0, usage.total_bytes):
            known = None  # grown by somebody else
        if known is None:
            try:
                known = _Known(await _behind(device, fs_type, mounted_at, usage))
            except QuarryError:  # its target is away: asked again next time
                return ""
        self._known[name] = replace(known, total_bytes=usage.total_bytes)
        return known.problem

    def forget(self, volume: str) -> None:
        """It is staged anew, or no longer here."""
        self._known.pop(volume, None)

    def _stays_behind(self, volume: Volume, has_bytes: int, size_bytes: int, error: QuarryError) -> None:
        said = error.stderr.strip().splitlines() if isinstance(error, CommandFailed) else [str(error)]
        why = f" and could not be grown ({said[-1]})" if said else ""
        known = self._known[volume.meta.name] = _Known(_sizes(has_bytes, size_bytes, why))
        log.warning("volume %s: %s", volume.meta.name, known.problem)


async def _behind(device: Path, fs_type: str, mounted_at: Path, usage: Usage) -> str:
    size_bytes = devices.size_bytes(device)
    if usage.total_bytes >= size_bytes - SLACK_BYTES:
        return ""
    has_bytes = await filesystem.mounted_bytes(device, fs_type, mounted_at)
    return _sizes(has_bytes, size_bytes, f"; {_NOT_TRIED}") if 0 < has_bytes < size_bytes - SLACK_BYTES else ""


def _sizes(has_bytes: int, size_bytes: int, why: str = "") -> str:
    return f"its filesystem has {has_bytes} of its {size_bytes} bytes{why}; {_REMEDY}"
