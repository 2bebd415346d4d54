"""Making a volume visible at a staging or target path, and what must not be published beside what."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from agent.errors import AlreadyExists, CommandFailed, FailedPrecondition, InvalidArgument, QuarryError, shorten
from agent.host import device as devices
from agent.host import mount, mount_options, xfs
from agent.host.paths import CheckedPath
from agent.model import Attachment
from agent.volumes.rules.modes import Filesystem

log = logging.getLogger(__name__)


async def mount_filesystem(device: Path, path: CheckedPath, mode: Filesystem, own_options: Sequence[str]) -> None:
    """Mount it with the caller's flags and ours, which win. InvalidArgument when it is those flags that do not go."""
    try:
        await mount.ensure_mounted(device, path, mode.fs_type, [*mode.mount_flags, *own_options])
    except CommandFailed as error:
        if not mode.mount_flags:
            raise
        # The kernel gives one error for many causes: whether it is the flags shows when they are left out.
        await mount.ensure_mounted(device, path, mode.fs_type, own_options)
        await mount.ensure_unmounted(path)
        flags, said = shorten(",".join(mode.mount_flags)), shorten(error.stderr.strip(), 300)
        raise InvalidArgument("mount_flags", f"{mode.fs_type} cannot be mounted with {flags!r}: {said}") from error


async def mount_shared_filesystem(
    device: Path, path: CheckedPath, mode: Filesystem, own_options: Sequence[str]
) -> None:
    """Mount what other machines have too: not even a journal is replayed, which would change it under them."""
    if mount.at(path.real) is None:
        await devices.set_readonly(device, True)
    try:
        await mount_filesystem(device, path, mode, own_options)
    except CommandFailed as error:
        # Freezing for a snapshot leaves XFS with a journal to replay, though there is nothing in it.
        if mode.fs_type == "xfs" and await xfs.is_frozen_image(device):
            await mount_filesystem(device, path, mode, [*own_options, "norecovery"])
            return
        raise FailedPrecondition(
            "the filesystem was not unmounted cleanly, and replaying its journal would change it under the other nodes "
            "that have the volume: publish it to one node alone and stage it there first"
        ) from error


async def bind_filesystem(
    device: Path, staging: CheckedPath, target: CheckedPath, mode: Filesystem, *, readonly: bool
) -> None:
    """Make what is staged visible at `target`, in the way of `mode` (whose `fs_type` "" is any), or refuse."""
    staged = mount.at(staging.real)
    if staged is None or staged.device != devices.number(device):
        raise FailedPrecondition(f"the volume is not mounted at {staging}: stage it first")
    if mode.fs_type not in ("", staged.fs_type):
        how = f"as {staged.fs_type}, not as {mode.fs_type}"
        if mount.at(target.real) is not None:
            raise AlreadyExists("mount", str(target), how)
        raise FailedPrecondition(f"the volume is staged {how}")
    if how := mount_options.lacking(staged.options, [*mode.mount_flags, "rw"]):
        raise FailedPrecondition(f"the volume is staged as {how}: stage it with the same mount flags")
    target.make_directory()
    await mount.ensure_bound(staging, target, readonly=readonly)


async def bind_block(device: Path, target: CheckedPath, *, readonly: bool) -> None:
    """Make the node of the device visible at `target`. Read-only is the device's, so at all of its targets or none."""
    refuse_filesystem_use(device, target)
    if devices.is_readonly(device) != readonly:
        now = "writable" if readonly else "read-only"
        if mount.is_node(target.real, device):
            raise AlreadyExists("mount", str(target), f"as {now}")
        others = [str(found.target) for found in mount.uses(device)]
        if others:
            raise FailedPrecondition(f"the volume is published {now} at {others[0]}")
        await devices.set_readonly(device, readonly)
    target.make_file()
    await mount.ensure_node_bound(device, target)


def refuse_filesystem_use(device: Path, path: CheckedPath) -> None:
    """For raw use at `path`. AlreadyExists when it is a filesystem there, FailedPrecondition when elsewhere."""
    number = devices.number(device)
    mounted = [found.target for found in mount.uses(device) if found.device == number]
    if path.real in mounted:
        raise AlreadyExists("mount", str(path), "as a filesystem, not as a raw block device")
    if mounted:
        raise FailedPrecondition(f"the volume is mounted as a filesystem at {mounted[0]}")


def refuse_shared_filesystem(attachment: Attachment) -> None:
    """Several nodes may write to what is published for raw use: a filesystem would not survive that."""
    if attachment.access_mode.is_raw:
        raise FailedPrecondition(
            f"the volume is published as {attachment.access_mode}, for raw block use only: publish it in another mode"
        )


def refuse_second_target(device: Path, staging: CheckedPath, target: CheckedPath) -> None:
    """A volume for a single writer is published once: one pod, not one node (CSI SINGLE_NODE_SINGLE_WRITER)."""
    others = [str(found.target) for found in mount.uses(device) if found.target not in (staging.real, target.real)]
    if others:
        raise FailedPrecondition(f"the volume is for a single writer and is published at {others[0]} already")


def remove_unless_mounted(target: CheckedPath) -> None:
    if mount.at(target.real) is None:
        try:
            target.remove()
        except (OSError, QuarryError) as error:
            log.warning("%s is left behind: %s", target, error)
