"""Making a volume visible at a staging or target path, and what must not be published beside what."""

from __future__ import annotations

import logging
from pathlib import Path

from agent.errors import CommandFailed, FailedPrecondition, InvalidArgument, QuarryError, shorten
from agent.host import device as devices
from agent.host import mount
from agent.host.paths import CheckedPath
from agent.model import Attachment
from agent.volumes.formatting import Filesystem

log = logging.getLogger(__name__)


async def mount_filesystem(device: Path, path: CheckedPath, mode: Filesystem, own_options: list[str]) -> None:
    """Mount it with our options and the caller's flags. InvalidArgument when it is those flags that do not go."""
    try:
        await mount.ensure_mounted(device, path, mode.fs_type, [*own_options, *mode.mount_flags])
    except CommandFailed as error:
        if not mode.mount_flags:
            raise
        # The kernel gives one error for many causes: whether it is the flags shows when they are left out.
        await mount.ensure_mounted(device, path, mode.fs_type, own_options)
        await mount.ensure_unmounted(path)
        flags, said = shorten(",".join(mode.mount_flags)), shorten(error.stderr.strip(), 300)
        raise InvalidArgument("mount_flags", f"{mode.fs_type} cannot be mounted with {flags!r}: {said}") from error


async def mount_shared_filesystem(device: Path, path: CheckedPath, mode: Filesystem, own_options: list[str]) -> None:
    """Mount what other machines have too: not even a journal is replayed, which would change it under them."""
    if mount.at(path.real) is None:
        await devices.set_readonly(device, True)
    try:
        await mount_filesystem(device, path, mode, own_options)
    except CommandFailed as error:
        raise FailedPrecondition(
            "the filesystem was not unmounted cleanly, and replaying its journal would change it under the other nodes "
            "that have the volume: publish it to one node alone and stage it there first"
        ) from error


async def bind_filesystem(device: Path, staging: CheckedPath, target: CheckedPath, *, readonly: bool) -> None:
    staged = mount.at(staging.real)
    if staged is None or staged.device != devices.number(device):
        raise FailedPrecondition(f"the volume is not mounted at {staging}: stage it first")
    target.make_directory()
    await mount.ensure_bound(staging, target, readonly=readonly)


async def bind_block(device: Path, target: CheckedPath, *, readonly: bool) -> None:
    refuse_filesystem_use(device)
    if devices.is_readonly(device) != readonly:
        others = [str(found.target) for found in mount.uses(device) if found.target != target.real]
        if others:
            raise FailedPrecondition(
                f"the volume is published {'writable' if readonly else 'read-only'} at {others[0]}"
            )
        await devices.set_readonly(device, readonly)
    target.make_file()
    await mount.ensure_node_bound(device, target)


def refuse_filesystem_use(device: Path) -> None:
    number = devices.number(device)
    mounted = [str(found.target) for found in mount.uses(device) if found.device == number]
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
