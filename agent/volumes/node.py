"""The node side of a volume: attached, formatted, mounted and published on this machine, and back.

The state is the machine's (mountinfo, sysfs, loop devices) and is read, never remembered, so each call may be repeated
after a crash at any point. Each step back tolerates that the steps before it never happened.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.errors import FailedPrecondition, NotFound, QuarryError, Unavailable
from agent.host import blkid, filesystem, holders, mount
from agent.host import device as devices
from agent.host.paths import CheckedPath, check_path
from agent.model import AccessMode, Attachment, Frontend, Volume
from agent.volumes import fault, publishing
from agent.volumes.formatting import Filesystem, Formatter
from agent.volumes.freezing import Freezer
from agent.volumes.frontends import FrontendDriver
from agent.volumes.guard import VolumeGuard

__all__ = ["Block", "Filesystem", "NodeVolumes", "VolumeMode", "VolumeStats"]

RESIZE_TIMEOUT_S = 15.0
THAW_RETRY_MIN_S, THAW_RETRY_MAX_S = 0.1, 10.0
_POLL_S = 0.02
_GROW_SLACK_BYTES = 16 << 20
"""A filesystem is grown at stage only when this much is missing: sizes never match to the byte."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Block:
    """Access to the raw block device."""


VolumeMode = Filesystem | Block


@dataclass(frozen=True, slots=True)
class VolumeStats:
    """Use of a published volume. A raw block device has a total only."""

    total_bytes: int
    used_bytes: int = 0
    available_bytes: int = 0
    total_inodes: int = 0
    used_inodes: int = 0
    available_inodes: int = 0
    problem: str = ""
    """What is wrong with it on this machine, and the remedy; empty: nothing."""


class NodeVolumes:
    """Volumes on this machine. One operation per volume at a time; a second one waits briefly, then Busy.

    `state_dir` keeps what must survive a crash (formatting, freezing); paths are accepted below `mount_roots` only.
    Everything that mounts raises FailedPrecondition when the process may not.
    """

    def __init__(
        self,
        node_name: str,
        mount_roots: Sequence[Path],
        frontends: Mapping[Frontend, FrontendDriver],
        state_dir: Path,
        freeze_timeout_s: float = 3.0,
    ) -> None:
        self._node_name = node_name
        self._roots = tuple(mount_roots)
        self._frontends = dict(frontends)
        self._formatter = Formatter(state_dir / "formatting")
        self._freezer = Freezer(state_dir / "frozen", freeze_timeout_s)
        self._guard = VolumeGuard()

    async def stage(self, volume: Volume, staging_path: Path, mode: VolumeMode, *, readonly: bool = False) -> None:
        """Attach the volume and, as a filesystem, mount it at `staging_path`, formatted first if it is blank.

        FailedPrecondition: not published to this node, other data on it, in use in another way. InvalidArgument for
        the path or the options. Unavailable: the target cannot be reached now.
        """
        attachment = self._attachment(volume)
        path = check_path("staging_target_path", staging_path, self._roots)
        if isinstance(mode, Filesystem):
            publishing.refuse_shared_filesystem(attachment)
            filesystem.check_options(mode.fs_type, mode.mount_flags, mode.mkfs_options)
        devices.require_admin()
        async with self._hold(volume.meta.name, path), self._attached(volume) as device:
            if isinstance(mode, Block):
                publishing.refuse_filesystem_use(device)
                await self._formatter.forget(volume)
                return
            path.make_directory()
            await self._mount(volume, device, path, mode, readonly=readonly or attachment.readonly)

    async def unstage(self, volume_id: str, volume: Volume | None, staging_path: Path) -> None:
        """Unmount and detach. Never staged, or volume unknown: fine. FailedPrecondition while still published.

        Unavailable while a filesystem is still being written back: detaching would lose what was written last.
        """
        path = check_path("staging_target_path", staging_path, self._roots)
        async with self._hold(volume_id, path):
            staged = mount.at(path.real)
            device = await self._driver(volume).find(volume) if volume is not None else None
            if staged is not None or device is not None:
                devices.require_admin()
            in_use = mount.uses(device) if device else mount.uses_of(staged.device) if staged else []
            elsewhere = [str(found.target) for found in in_use if found.target != path.real]
            if elsewhere:
                raise FailedPrecondition(f"volume {volume_id} is still in use at {', '.join(sorted(elsewhere))}")
            drivers = [self._driver(volume)] if volume is not None else list(self._frontends.values())
            if volume is None or _attachment_of(volume, self._node_name) is None:
                # Unpublished first (a forced detach): what was not written yet never will be, so nothing waits for it.
                for driver in drivers:
                    await driver.abandon(volume_id)
            await self._freezer.thaw(volume_id)
            await mount.ensure_unmounted(path)
            if device is not None and device.exists() and await blkid.is_held(device):
                raise Unavailable(await _who_has(volume_id, device))
            for driver in drivers:
                await driver.detach(volume_id, volume)
            await self._freezer.forget(volume_id)

    async def publish(
        self, volume: Volume, staging_path: Path, target_path: Path, mode: VolumeMode, *, readonly: bool
    ) -> None:
        """Make a staged volume visible at `target_path`: bind mount, or the node of its block device on a file.

        FailedPrecondition: not staged, target in use. InvalidArgument: a path.
        """
        attachment = self._attachment(volume)
        staging = check_path("staging_target_path", staging_path, self._roots)
        target = check_path("target_path", target_path, self._roots)
        devices.require_admin()
        readonly = readonly or attachment.readonly
        async with self._hold(volume.meta.name, staging, target):
            device = await self._driver(volume).find(volume)
            if device is None:
                raise FailedPrecondition(f"volume {volume.meta.name} is not staged on this node")
            if attachment.access_mode is AccessMode.RWOP:
                publishing.refuse_second_target(device, staging, target)
            try:
                if isinstance(mode, Block):
                    await publishing.bind_block(device, target, readonly=readonly)
                else:
                    await publishing.bind_filesystem(device, staging, target, readonly=readonly)
            except QuarryError:
                publishing.remove_unless_mounted(target)
                raise

    async def unpublish(self, volume_id: str, target_path: Path) -> None:
        """Unmount and remove `target_path`. Not there: fine. FailedPrecondition while a process uses it."""
        target = check_path("target_path", target_path, self._roots)
        async with self._hold(volume_id, target):
            if mount.at(target.real) is not None:
                devices.require_admin()
                await mount.ensure_unmounted(target)
            try:
                target.remove()
            except OSError as error:
                raise FailedPrecondition(f"{target} cannot be removed: {error.strerror}") from error

    async def expand(self, volume: Volume, path: Path) -> int:
        """Let the device and the filesystem on it grow to the volume's size, in use; returns the device's bytes.

        NotFound when the volume is not at `path`; Unavailable when the kernel does not see the new size.
        """
        async with self._guard.hold(volume.meta.name):
            device = await self._device_at(volume, path)
            devices.require_admin()
            await self._driver(volume).rescan(volume, device)
            size = await _wait_for_size(device, _recorded_bytes(volume))
            mounts = [found for found in mount.uses(device) if not mount.is_node(found.target, device)]
            if mounts:
                writable = [found for found in mounts if not found.readonly]
                if not writable:
                    raise FailedPrecondition(f"volume {volume.meta.name} is mounted read-only, so it cannot grow")
                await filesystem.grow(device, writable[0].fs_type, writable[0].target)
            return size

    async def stats(self, volume: Volume, path: Path) -> VolumeStats:
        """Bytes and inodes of the volume at `path`; a raw block device: its size. NotFound when it is not there."""
        device = await self._device_at(volume, path)
        real = _real(path)
        found = mount.at(real)
        if found is None:
            raise NotFound("published volume", str(path))
        if mount.is_node(real, device):
            return VolumeStats(total_bytes=devices.size_bytes(device))
        usage = filesystem.usage(real)
        return VolumeStats(
            usage.total_bytes,
            usage.used_bytes,
            usage.available_bytes,
            usage.total_inodes,
            usage.used_inodes,
            usage.available_inodes,
            fault.of_filesystem(mount.uses(device), real),
        )

    @asynccontextmanager
    async def frozen(self, volume: Volume) -> AsyncIterator[None]:
        """For the block nothing is written to the volume's filesystem, and the device has all that was written before.

        Not mounted writable as a filesystem on this machine: nothing happens. Thawed after `freeze_timeout_s` at the
        latest, also when this process is killed or hangs. Unavailable, after the block, when it did not last that
        long: what was taken meanwhile is not consistent.
        """
        async with self._guard.hold(volume.meta.name):
            driver = self._frontends.get(volume.spec.frontend)
            device = await driver.find(volume) if driver else None
            if device is None:
                yield
                return
            async with self._freezer.frozen(volume.meta.name, device):
                yield

    async def recover(self, volume: Volume) -> None:
        """Let a device of this machine go on after its target restarted. Not guarded: an unmount may wait for it."""
        driver = self._frontends.get(volume.spec.frontend)
        if driver is not None:
            await driver.recover(volume)

    async def thaw_leftovers(self) -> None:
        """Thaw what was frozen when an earlier run of the agent was killed; returns when all is, trying again."""
        left, delay = self._freezer.noted(), THAW_RETRY_MIN_S
        while left:
            failed = []
            for name in left:
                try:
                    async with self._guard.hold(name):
                        await self._freezer.thaw(name)
                except QuarryError as error:
                    log.warning("volume %s may still be frozen: %s", name, error)
                    failed.append(name)
            left = failed
            await asyncio.sleep(delay if left else 0)
            delay = min(2 * delay, THAW_RETRY_MAX_S)

    async def release_leftovers(self, volumes: Sequence[Volume]) -> list[str]:
        """Detach what a crash left behind: devices of volumes that are not published to this node and not in use.

        `volumes`: all that exist; notes of others go too. Returns the ids. What is still mounted stays: its data may
        not be written yet.
        """
        wanted = {volume.meta.name for volume in volumes if _attachment_of(volume, self._node_name)}
        by_name = {volume.meta.name: volume for volume in volumes}
        released = []
        for driver in self._frontends.values():
            for name in set(await driver.known()) - wanted:
                volume = by_name.get(name)
                try:
                    async with self._guard.hold(name):
                        device = await driver.find(volume) if volume else None
                        if device is None or not mount.uses(device):
                            await driver.detach(name, volume)
                            released.append(name)
                except QuarryError as error:
                    log.warning("the device of volume %s is left attached: %s", name, error)
        try:
            await self._formatter.forget_all_but(by_name)
        except QuarryError as error:
            log.warning("notes of deleted volumes stay: %s", error)
        return sorted(released)

    @asynccontextmanager
    async def _hold(self, volume_id: str, *paths: CheckedPath) -> AsyncIterator[None]:
        """Hold the volume and the paths: a call for another volume may name the same ones."""
        async with AsyncExitStack() as held:
            await held.enter_async_context(self._guard.hold(volume_id))
            for path in sorted({str(path) for path in paths}):
                await held.enter_async_context(self._guard.hold(path))
            yield

    @asynccontextmanager
    async def _attached(self, volume: Volume) -> AsyncIterator[Path]:
        """The device for the block; when the block fails and the device is new and unused, it is detached again."""
        driver = self._driver(volume)
        before = await driver.find(volume)
        try:
            device = await driver.attach(volume)
            _check_size(volume, device)
            if devices.is_readonly(device) and not mount.uses(device):  # left by a read-only raw block publication
                await devices.set_readonly(device, False)
            yield device
        except QuarryError:
            if before is None:
                await _detach_unused(driver, volume)
            raise

    async def _mount(
        self, volume: Volume, device: Path, path: CheckedPath, mode: Filesystem, *, readonly: bool
    ) -> None:
        elsewhere = sorted(str(found.target) for found in mount.uses(device) if found.target != path.real)
        small = False
        if mount.at(path.real) is None:
            if elsewhere:
                raise FailedPrecondition(f"volume {volume.meta.name} is in use at {', '.join(elsewhere)}")
            found = await self._formatter.ensure(volume, device, mode, readonly=readonly)
            # A clone, or a volume expanded while it was nowhere mounted, has a filesystem smaller than its device.
            small = not readonly and 0 < found.filesystem_bytes < devices.size_bytes(device) - _GROW_SLACK_BYTES
        if small and not filesystem.can_grow_mounted(mode.fs_type):
            await filesystem.grow_unmounted(device)
            small = False
        # nouuid: a clone may be mounted beside its source.
        own = [*(["ro"] if readonly else []), *(["nouuid"] if mode.fs_type == "xfs" else [])]
        shared = len(volume.spec.attachments) > 1
        put = publishing.mount_shared_filesystem if shared else publishing.mount_filesystem
        await put(device, path, mode, own)
        if small:
            await filesystem.grow(device, mode.fs_type, path.real)

    async def _device_at(self, volume: Volume, path: Path) -> Path:
        device = await self._driver(volume).find(volume)
        real = _real(path)
        # A filesystem that has shut down denies that it exists, mountinfo does not.
        if device is None or (mount.at(real) is None and not _exists(real)):
            raise NotFound("published volume", str(path))
        uses = mount.uses(device)
        # A raw block volume is staged without a mount, so its staging path is nothing but a path.
        raw = not any(found.device == devices.number(device) for found in uses)
        if not raw and not any(found.target == real for found in uses):
            raise NotFound("published volume", str(path))
        return device

    def _driver(self, volume: Volume) -> FrontendDriver:
        driver = self._frontends.get(volume.spec.frontend)
        if driver is None:
            raise FailedPrecondition(f"this node does not offer the frontend {volume.spec.frontend}")
        return driver

    def _attachment(self, volume: Volume) -> Attachment:
        found = _attachment_of(volume, self._node_name)
        if found is None:
            raise FailedPrecondition(f"volume {volume.meta.name} is not published to node {self._node_name}")
        return found


async def _who_has(volume_id: str, device: Path) -> str:
    """Why a device that no mount shows cannot be detached, with the remedy where somebody has it."""
    if told := await asyncio.to_thread(holders.describe, device):
        return f"volume {volume_id}: {told}; then repeat the call"
    return f"volume {volume_id} is still being written back; repeat the call"


async def _detach_unused(driver: FrontendDriver, volume: Volume) -> None:
    """A final error must leave nothing behind; failing at that is told in the log, the first error to the caller."""
    try:
        device = await driver.find(volume)
        if device is None or not mount.uses(device):
            await driver.detach(volume.meta.name, volume)
    except QuarryError as error:
        log.warning("the device of volume %s is left attached: %s", volume.meta.name, error)


def _check_size(volume: Volume, device: Path) -> None:
    """A device smaller than the volume is not this volume, or a stale view of it: nothing is written to it."""
    size, recorded = devices.size_bytes(device), _recorded_bytes(volume)
    if size < recorded:
        raise FailedPrecondition(f"{device} has {size} bytes where volume {volume.meta.name} has {recorded}")


async def _wait_for_size(device: Path, at_least: int) -> int:
    deadline = time.monotonic() + RESIZE_TIMEOUT_S
    while (size := devices.size_bytes(device)) < at_least:
        if time.monotonic() > deadline:
            raise Unavailable(f"{device} still has {size} bytes of {at_least}")
        await asyncio.sleep(_POLL_S)
    return size


def _recorded_bytes(volume: Volume) -> int:
    return max(volume.status.size_bytes, volume.spec.size_bytes)


def _attachment_of(volume: Volume, node_name: str) -> Attachment | None:
    return next((found for found in volume.spec.attachments if found.node == node_name), None)


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def _real(path: Path) -> Path:
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError):
        raise NotFound("published volume", str(path)) from None
