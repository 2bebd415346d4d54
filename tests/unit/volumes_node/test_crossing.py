"""Node calls of different volumes that cross: the same paths, a volume or a path that goes meanwhile."""

from __future__ import annotations

import asyncio
import subprocess
import time
from contextlib import suppress

import pytest

from agent.errors import FailedPrecondition, InvalidArgument, NotFound
from agent.volumes.rules.modes import Block, Filesystem

from .conftest import Machine

pytestmark = pytest.mark.root
EXT4 = Filesystem()


async def test_a_path_is_not_taken_away_while_something_is_mounted_on_it(machine: Machine) -> None:
    """The other volume's unpublish removes the empty folder, before or after, but not in the middle of a stage.

    Nor is what is staged taken away by it.
    """
    volume, other, node = machine.volume(), machine.volume("other"), machine.node()
    staging = machine.mounts / "staging"

    async def take_away() -> None:
        for _ in range(200):
            with suppress(FailedPrecondition):
                await node.unpublish(other.meta.name, staging)
            await asyncio.sleep(0)

    removing = asyncio.create_task(take_away())
    for _ in range(3):
        await node.stage(volume, staging, EXT4)
        await asyncio.sleep(0.1)
        assert machine.mounted() == [str(staging)]
        await node.unstage(volume.meta.name, volume, staging)
    await removing
    assert machine.loops() == machine.mounted() == []


async def test_a_volume_deleted_while_it_is_staged_is_not_found(machine: Machine) -> None:
    volume, node = machine.volume(), machine.node()
    machine.files[volume.meta.name].unlink()
    with pytest.raises(NotFound):
        await node.stage(volume, machine.path("staging"), EXT4)
    assert machine.loops() == machine.mounted() == []


async def test_unstage_at_another_path_says_where_it_is_in_use_at_once(machine: Machine) -> None:
    """Also when the record is gone: waiting for the device to be closed would not end."""
    volume, node = machine.volume(), machine.node()
    staging = machine.path("staging")
    await node.stage(volume, staging, EXT4)
    started = time.monotonic()
    with pytest.raises(FailedPrecondition, match=str(staging)):
        await node.unstage(volume.meta.name, None, machine.path("elsewhere"))
    assert time.monotonic() - started < 5
    assert machine.mounted() == [str(staging)]
    await node.unstage(volume.meta.name, None, staging)
    assert machine.loops() == machine.mounted() == []


async def test_mount_flags_that_the_filesystem_does_not_know_are_named(machine: Machine) -> None:
    volume, node = machine.volume(), machine.node()
    staging = machine.path("staging")
    with pytest.raises(InvalidArgument, match=r"mount_flags.*no-such-flag"):
        await node.stage(volume, staging, Filesystem("ext4", ("noatime", "no-such-flag")))
    assert machine.loops() == machine.mounted() == []
    await node.stage(volume, staging, EXT4)


@pytest.mark.parametrize("mode", [EXT4, Block()], ids=["filesystem", "block"])
async def test_a_parent_that_cannot_be_written_is_a_precondition(machine: Machine, mode: Filesystem | Block) -> None:
    volume, node = machine.volume(), machine.node()
    staging = machine.path("staging")
    await node.stage(volume, staging, mode)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(machine.path("read-only"))], check=True)  # noqa: ASYNC221 - a moment
    with pytest.raises(FailedPrecondition, match="cannot be made"):
        await node.publish(volume, staging, machine.mounts / "read-only" / "target", mode, readonly=False)
