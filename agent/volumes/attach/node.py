"""The node side of a volume: attached, formatted, mounted and published on this machine, and back.

The state is the machine's (mountinfo, sysfs, loop devices) and is read, never remembered, so each call may be repeated
after a crash at any point. Each step back tolerates that the steps before it never happened.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from agent.errors import Busy, FailedPrecondition, InvalidArgument, NotFound, QuarryError, Unavailable
from agent.host import device as devices
from agent.host import filesystem, mount, mount_options
from agent.host.paths import CheckedPath, check_path
from agent.model import AccessMode, Attachment, Frontend, Volume, filesystems
from agent.tasks.guard import VolumeGuard
from agent.volumes.attach import fault, publishing
from agent.volumes.attach.formatting import Formatter
from agent.volumes.attach.freezing import Freezer
from agent.volumes.attach.frontends import FrontendDriver
from agent.volumes.attach.growth import Growth
from agent.volumes.attach.leftovers import Leftovers
from agent.volumes.attach.long_work import LongWork, Progress
from agent.volumes.attach.places import Places, Use
from agent.volumes.attach.removal import Removal
from agent.volumes.attach.staging import Staging, recorded_bytes
from agent.volumes.rules.modes import Block, Filesystem, VolumeMode
from agent.volumes.rules.volume_stats import VolumeStats

RESIZE_TIMEOUT_S = 15.0
_POLL_S = 0.02
_STAGE, _EXPAND = "stage", "expand"
"""Kinds of work."""

log = logging.getLogger(__name__)


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
        self._guard = VolumeGuard()
        self._work = LongWork()
        self._freezer = Freezer(state_dir / "frozen", freeze_timeout_s)
        self._growth = Growth()
        formatter = Formatter(state_dir / "formatting")
        self._places = Places(state_dir / "places", frontends.values())
        self._staging = Staging(formatter, self._growth, self._places)
        self._removal = Removal(self._frontends, self._freezer, self._places)
        self._leftovers = Leftovers(self._frontends, formatter, self._freezer, self._guard)

    async def stage(self, volume: Volume, staging_path: Path, mode: VolumeMode, *, readonly: bool = False) -> None:
        """Attach the volume and, as a filesystem, mount it at `staging_path`, formatted first if it is blank.

        Goes on when the caller leaves, and is joined by a repetition. AlreadyExists: staged there in another way.
        FailedPrecondition: not published to this node, other data on it, in use elsewhere. InvalidArgument for the
        path or the options. Busy: it takes longer. Unavailable: the target cannot be reached now.
        """
        attachment = self._attachment(volume)
        path = check_path("staging_target_path", staging_path, self._roots)
        if isinstance(mode, Filesystem):
            publishing.refuse_shared_filesystem(attachment)
            filesystems.check_options(mode.fs_type, mode.mount_flags, mode.mkfs_options)
        devices.require_admin()
        driver, readonly = self._driver(volume), readonly or attachment.readonly

        async def work(progress: Progress) -> None:
            if isinstance(mode, Block):
                await self._staging.raw(driver, volume, path)
            else:
                await self._staging.mounted(driver, volume, path, mode, progress, readonly=readonly)

        request = (_STAGE, path.real, mode, readonly)
        await self._work.run(volume.meta.name, request, lambda: self._take(volume.meta.name, path), work)

    async def unstage(self, volume_id: str, volume: Volume | None, staging_path: Path) -> None:
        """Unmount and detach. Never staged, or volume unknown: fine. FailedPrecondition while still published.

        Busy while it is formatted or checked, which goes on, unless the volume was deleted or taken from this node.
        Unavailable while a filesystem is still being written back: detaching would lose what was written last. One that
        its user has left frozen is thawed.
        """
        path = check_path("staging_target_path", staging_path, self._roots)
        published = volume is not None and _attachment_of(volume, self._node_name) is not None
        if not published:
            await self._work.end(volume_id)
        if volume is not None:
            self._driver(volume)  # refused when there is none
        async with self._hold(volume_id, path):
            await self._removal.unstage(volume_id, volume, path, published=published)
            self._growth.forget(volume_id)
            await self._work.end(volume_id)  # none goes on now, but the result of one may be left

    async def publish(
        self, volume: Volume, staging_path: Path, target_path: Path, mode: VolumeMode, *, readonly: bool
    ) -> None:
        """Make a staged volume visible at `target_path`: bind mount, or the node of its block device on a file.

        AlreadyExists: it is there in another way. FailedPrecondition: not staged, or not in this way, target in use.
        InvalidArgument: a path.
        """
        attachment = self._attachment(volume)
        staging = check_path("staging_target_path", staging_path, self._roots)
        target = check_path("target_path", target_path, self._roots)
        if target.real == staging.real:
            raise InvalidArgument("target_path", "is where the volume is staged", "publish it at a path of its own")
        devices.require_admin()
        flags = mode.mount_flags if isinstance(mode, Filesystem) else ()
        readonly = readonly or attachment.readonly or mount_options.is_readonly(flags)
        async with self._hold(volume.meta.name, staging, target):
            device = await self._driver(volume).find(volume)
            if device is None:
                raise FailedPrecondition(f"volume {volume.meta.name} is not staged on this node")
            if attachment.access_mode is AccessMode.RWOP:
                publishing.refuse_second_target(device, staging, target)
            if mount.at(target.real) is None:
                await self._places.note(target, volume.meta.name, Use.PUBLISHED)
            try:
                if isinstance(mode, Block):
                    await publishing.bind_block(device, target, readonly=readonly)
                else:
                    await publishing.bind_filesystem(device, staging, target, mode, readonly=readonly)
            except QuarryError:
                publishing.remove_unless_mounted(target)
                raise

    async def unpublish(self, volume_id: str, target_path: Path) -> None:
        """Unmount and remove `target_path`. Not there: fine.

        FailedPrecondition while a process uses it, or when what is mounted there is not what `publish` of this volume
        put there: that stays.
        """
        target = check_path("target_path", target_path, self._roots)
        async with self._hold(volume_id, target):
            await self._removal.unpublish(volume_id, target)

    async def expand(self, volume: Volume, path: Path) -> int:
        """Let the device and the filesystem on it grow to the volume's size, in use; returns the device's bytes.

        Goes on when the caller leaves, and is joined by a repetition. NotFound when the volume is not at `path`;
        OutOfRange when its filesystem can never be of that size; Unavailable when the kernel does not see the new size.
        """
        name = volume.meta.name

        async def work(progress: Progress) -> int:
            device = await self._device_at(volume, path)
            devices.require_admin()
            await self._driver(volume).rescan(volume, device)
            size = await _wait_for_size(device, recorded_bytes(volume))
            mounts = [found for found in mount.uses(device) if not mount.is_node(found.target, device)]
            if mounts:
                writable = [found for found in mounts if not found.readonly]
                if not writable:
                    raise FailedPrecondition(f"volume {name} is mounted read-only, so it cannot grow")
                progress.doing("having its filesystem grown")
                await self._growth.now(volume, device, writable[0].fs_type, writable[0].target)
            return size

        return await self._work.run(name, (_EXPAND, path, recorded_bytes(volume)), lambda: self._take(name), work)

    async def stats(self, volume: Volume, path: Path) -> VolumeStats:
        """Bytes and inodes of the volume at `path`; a raw block device: its size. NotFound when it is not there.

        At the path where it is being staged: how far that is.
        """
        real = _real(path)
        if doing := self._work.progress(volume.meta.name, _STAGE, real):
            return VolumeStats(recorded_bytes(volume), problem=f"it cannot be used yet: it is {doing}")
        device = await self._device_at(volume, path)
        found = mount.at(real)
        if found is None:
            raise NotFound("published volume", str(path))
        if mount.is_node(real, device):
            return VolumeStats(total_bytes=devices.size_bytes(device))
        usage = filesystem.usage(real)
        doing = self._work.progress(volume.meta.name, _EXPAND)
        uses = mount.uses(device)
        problem = fault.of_filesystem(uses, real)
        if (
            not problem and not doing and not all(each.readonly for each in uses)
        ):  # one that is only read stays as it is
            problem = await self._growth.problem(volume, device, found.fs_type, real, usage)
        return VolumeStats(
            usage.total_bytes,
            usage.used_bytes,
            usage.available_bytes,
            usage.total_inodes,
            usage.used_inodes,
            usage.available_inodes,
            problem,
            f"it is {doing}" if doing else "",
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
        await self._leftovers.thaw()

    async def release_leftovers(self, volumes: Sequence[Volume]) -> list[str]:
        """Detach what a crash left behind: devices of volumes that are not published to this node and not in use.

        `volumes`: all that exist; notes of others go too. Returns the ids. What is still mounted stays: its data may
        not be written yet.
        """
        await self._places.forget_old()
        wanted = {volume.meta.name for volume in volumes if _attachment_of(volume, self._node_name)}
        return await self._leftovers.release(volumes, wanted)

    async def stop(self) -> None:
        """End the work that goes on without a caller; the next agent begins it anew when it is asked for."""
        await self._work.stop()

    @asynccontextmanager
    async def _hold(self, volume_id: str, *paths: CheckedPath) -> AsyncIterator[None]:
        release = await self._take(volume_id, *paths)
        try:
            yield
        finally:
            release()

    async def _take(self, volume_id: str, *paths: CheckedPath) -> Callable[[], None]:
        """Hold the volume and the paths (a call for another volume may name the same ones) until what is returned runs.

        Busy: others hold them, with what they do where that is known.
        """
        with ExitStack() as held:
            for name in (volume_id, *sorted({str(path) for path in paths})):
                try:
                    await self._guard.acquire(name)
                except Busy as error:
                    raise self._work.busy(volume_id) or error from None
                held.callback(self._guard.release, name)
            return held.pop_all().close

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


async def _wait_for_size(device: Path, at_least: int) -> int:
    deadline = time.monotonic() + RESIZE_TIMEOUT_S
    while (size := devices.size_bytes(device)) < at_least:
        if time.monotonic() > deadline:
            raise Unavailable(f"{device} still has {size} bytes of {at_least}")
        await asyncio.sleep(_POLL_S)
    return size


def _attachment_of(volume: Volume, node_name: str) -> Attachment | None:
    return next((found for found in volume.spec.attachments if found.node == node_name), None)


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def _real(path: Path) -> Path:
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError):
        raise NotFound("published volume", str(path)) from None
