"""Staging: a volume is attached, gets its filesystem if it has none, is checked, mounted and grown."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from agent.errors import CommandFailed, FailedPrecondition, QuarryError, Unavailable
from agent.host import device as devices
from agent.host import mount, mount_options
from agent.host.blkid import Content
from agent.host.paths import CheckedPath
from agent.model import Volume, filesystems
from agent.volumes.attach import held, publishing
from agent.volumes.attach.formatting import Formatter
from agent.volumes.attach.frontends import FrontendDriver
from agent.volumes.attach.growth import Growth
from agent.volumes.attach.long_work import Progress
from agent.volumes.attach.places import Places, Use
from agent.volumes.rules.modes import Filesystem

log = logging.getLogger(__name__)

_RESIZE_TIMEOUT_S, _POLL_S = 2.0, 0.02
_LONG_S = 1.0
"""After work that took longer than this it is asked once more whether the device is still the volume's."""


class Staging:
    """One call per volume and path at a time. What fails leaves nothing attached that was not before."""

    def __init__(self, formatter: Formatter, growth: Growth, places: Places) -> None:
        self._formatter = formatter
        self._growth = growth
        self._places = places

    async def raw(self, driver: FrontendDriver, volume: Volume, path: CheckedPath) -> None:
        """Attach the volume for raw use. AlreadyExists or FailedPrecondition while it is a filesystem."""
        async with _attached(driver, volume) as device:
            publishing.refuse_filesystem_use(device, path)
            await self._formatter.forget(volume)

    async def mounted(
        self,
        driver: FrontendDriver,
        volume: Volume,
        path: CheckedPath,
        mode: Filesystem,
        progress: Progress,
        *,
        readonly: bool,
    ) -> None:
        """Attach the volume and mount it at `path`. `readonly`: nothing at all may be written to it."""
        async with _attached(driver, volume) as device:
            path.make_directory()
            small = False
            if mount.at(path.real) is None:
                elsewhere = sorted(str(found.target) for found in mount.uses(device))
                if elsewhere:
                    raise FailedPrecondition(f"volume {volume.meta.name} is in use at {', '.join(elsewhere)}")
                found = await self._ready(volume, device, mode, progress, readonly=readonly)
                small = await self._growth.begin(volume, device, mode, found, progress, readonly=readonly)
                if progress.elapsed_s > _LONG_S and await driver.find(volume) != device:
                    raise Unavailable(f"{device} is no longer the device of volume {volume.meta.name}; repeat the call")
                await self._places.note(path, volume.meta.name, Use.STAGED)
            progress.doing("being mounted")
            await _mount(volume, device, path, mode, readonly=readonly)
            if small:
                await self._growth.finish(volume, device, mode, path, progress)

    async def _ready(
        self, volume: Volume, device: Path, mode: Filesystem, progress: Progress, *, readonly: bool
    ) -> Content:
        """Formatted and checked. Returns what was found."""
        try:
            return await self._formatter.ensure(volume, device, mode, progress, readonly=readonly)
        except Unavailable:
            # Somebody has the device: its own filesystem, perhaps, frozen when its last mount was taken away.
            if not await held.thawed(volume.meta.name, device):
                raise
            await held.ensure_free(volume.meta.name, device)
        return await self._formatter.ensure(volume, device, mode, progress, readonly=readonly)


async def _mount(volume: Volume, device: Path, path: CheckedPath, mode: Filesystem, *, readonly: bool) -> None:
    readonly = readonly or mount_options.is_readonly(mode.mount_flags)
    # nouuid: a clone may be mounted beside its source.
    own = ["ro" if readonly else "rw", *(["nouuid"] if mode.fs_type == "xfs" else [])]
    own += filesystems.on_error(mode.fs_type, mode.mount_flags)
    shared = len(volume.spec.attachments) > 1
    put = publishing.mount_shared_filesystem if shared else publishing.mount_filesystem
    try:
        await put(device, path, mode, own)
    except CommandFailed as error:  # what was checked a moment ago is another now, or the kernel knows better
        raise FailedPrecondition(
            f"the kernel does not mount {device} as {mode.fs_type}: {error.stderr.strip()}; dmesg may say more"
        ) from error


@asynccontextmanager
async def _attached(driver: FrontendDriver, volume: Volume) -> AsyncIterator[Path]:
    """The device for the block; when the block fails and the device is new and unused, it is detached again."""
    before = await driver.find(volume)
    try:
        device = await driver.attach(volume)
        await _ensure_size(driver, volume, device)
        if devices.is_readonly(device) and not mount.uses(device):  # left by a read-only raw block publication
            await devices.set_readonly(device, False)
        yield device
    except QuarryError:
        if before is None:
            await _detach_unused(driver, volume)
        raise


async def _detach_unused(driver: FrontendDriver, volume: Volume) -> None:
    """A final error must leave nothing behind; failing at that is told in the log, the first error to the caller."""
    try:
        device = await driver.find(volume)
        if device is None or not mount.uses(device):
            await driver.detach(volume.meta.name, volume)
    except QuarryError as error:
        log.warning("the device of volume %s is left attached: %s", volume.meta.name, error)


async def _ensure_size(driver: FrontendDriver, volume: Volume, device: Path) -> None:
    """A device smaller than the volume is not this volume, or a stale view of it: nothing is written to it.

    One that was attached before its volume grew is looked at again. In use it stays as it is: growing it is for
    NodeExpandVolume, which comes only after this call succeeded.
    """
    if devices.size_bytes(device) >= recorded_bytes(volume) or mount.uses(device):
        return
    await driver.rescan(volume, device)
    deadline = time.monotonic() + _RESIZE_TIMEOUT_S
    while (size := devices.size_bytes(device)) < recorded_bytes(volume):
        if time.monotonic() > deadline:
            raise FailedPrecondition(
                f"{device} has {size} bytes where volume {volume.meta.name} has {recorded_bytes(volume)}"
            )
        await asyncio.sleep(_POLL_S)


def recorded_bytes(volume: Volume) -> int:
    """The size that its device has at least."""
    return max(volume.status.size_bytes, volume.spec.size_bytes)
