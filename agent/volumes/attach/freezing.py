"""Freezing a volume's filesystem for the moment of a snapshot, with a note that outlives every process.

The note is written before anything is frozen and goes when it is known to be thawed. What it names is thawed at the
next start of the agent, before the next freeze, and before the volume is unmounted.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from agent.errors import QuarryError
from agent.host import device as devices
from agent.host import freeze, mount
from agent.host.journal import Journal

log = logging.getLogger(__name__)


class Freezer:
    """`notes`: a folder that survives a restart of the agent. Callers let one operation at a volume at a time."""

    def __init__(self, notes: Path, timeout_s: float) -> None:
        self._notes = Journal(notes)
        self._timeout_s = timeout_s

    @asynccontextmanager
    async def frozen(self, name: str, device: Path) -> AsyncIterator[None]:
        """Nothing is written to the filesystem on `device` during the block, and all that was is on the device.

        Thawed after the timeout at the latest, by whatever. Unavailable when it was not frozen all the time.
        Not mounted, or mounted read-only: nothing to freeze.
        """
        mounts = _writable(devices.number(device))
        if not mounts:
            yield
            return
        await self.thaw(name)
        major, minor = devices.number(device)
        await self._notes.write(name, {"device": f"{major}:{minor}", "boot": devices.boot_id()})
        try:
            held = await freeze.freeze(mounts, self._timeout_s)
        except QuarryError:
            await self._thaw_after_all(name)
            raise
        try:
            yield
        except BaseException:
            try:
                await self._end(name, held)
            except QuarryError as error:
                log.warning("volume %s: %s", name, error)  # the block's own error is the one to tell
            raise
        await self._end(name, held)

    async def thaw(self, name: str) -> None:
        """Thaw what a note tells of, if there is one. DeadlineExceeded when the device does not answer."""
        note = self._notes.read(name)
        if note is None:
            await self._notes.remove(name)  # what a crash left of writing one: nothing was frozen yet
            return
        major, _, minor = note.get("device", "").partition(":")
        if note.get("boot") == devices.boot_id() and devices.exists(number := (int(major), int(minor))):
            mounts = _writable(number)
            if not mounts:
                return  # unmounted by somebody else; it may be frozen still, and thawing needs a mount
            if await freeze.thaw(mounts):
                log.warning("volume %s was still frozen: thawed", name)
        await self._notes.remove(name)

    async def forget(self, name: str) -> None:
        """The device is gone, and everything on it."""
        await self._notes.remove(name)

    def noted(self) -> list[str]:
        """Volumes that may still be frozen."""
        return self._notes.keys()

    async def _thaw_after_all(self, name: str) -> None:
        try:
            await self.thaw(name)
        except QuarryError as error:
            log.warning("volume %s: %s", name, error)  # the note stays, and what came first is the one to tell

    async def _end(self, name: str, held: freeze.Freeze) -> None:
        try:
            await held.end()
        finally:
            if held.thawed:
                await self._notes.remove(name)


def _writable(number: tuple[int, int]) -> list[mount.Mount]:
    """The mounts of a filesystem that can be written to, be it elsewhere only; its root first."""
    found = [each for each in mount.uses_of(number) if each.device == number and "ro" not in each.super_options]
    return sorted(found, key=lambda each: each.root != "/")
