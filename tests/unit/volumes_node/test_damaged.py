"""Damage of a volume's filesystem is the volume's matter: a node carries those of others too."""

from __future__ import annotations

import subprocess

import pytest

from agent.errors import InvalidArgument
from agent.host import mount
from agent.volumes.rules.modes import Filesystem

from .conftest import SIZES, Machine, have

pytestmark = pytest.mark.root


@pytest.mark.parametrize(
    ("chosen", "options"), [("panic", ""), ("continue", ""), ("remount-ro", ""), ("continue", "errors=panic")]
)
@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ((), "remount-ro"),
        (("noatime",), "remount-ro"),
        (("errors=continue",), "continue"),
        (("noatime,errors=continue",), "continue"),
        (("errors=remount-ro",), "remount-ro"),
    ],
)
async def test_what_the_superblock_says_does_not_count(
    machine: Machine, chosen: str, options: str, flags: tuple[str, ...], wanted: str
) -> None:
    """As one that a tenant wrote to a raw block volume, which was then restored as a filesystem.

    `options`: mount options in the superblock.
    """
    volume, staging = machine.volume(), machine.path("staging")
    image = machine.files[volume.meta.name]
    for argv in (["mkfs.ext4", "-q"], ["tune2fs", "-e", chosen, "-E", f"mount_opts={options}"]):
        subprocess.run([*argv, str(image)], check=True, stdout=subprocess.DEVNULL)  # noqa: ASYNC221
    for readonly in (False, True):
        await machine.node().stage(volume, staging, Filesystem("ext4", flags), readonly=readonly)
        found = mount.at(staging)
        assert found is not None
        # What is as the superblock has it is not shown.
        shown = {option for option in found.super_options if option.startswith("errors=")}
        assert shown == (set() if wanted == chosen else {f"errors={wanted}"})
        await machine.node().unstage(volume.meta.name, volume, staging)


@pytest.mark.parametrize(
    ("fs_type", "flag"),
    [("ext4", "errors=panic"), ("ext4", "noatime,errors=panic"), ("btrfs", "fatal_errors=panic")],
)
async def test_nobody_can_ask_for_a_panic(machine: Machine, fs_type: str, flag: str) -> None:
    if reason := have(f"mkfs.{fs_type}"):
        pytest.skip(reason)
    volume = machine.volume(size_bytes=SIZES[fs_type])
    with pytest.raises(InvalidArgument, match=r"mount_flags.*errors=panic.*would stop the node"):
        await machine.node().stage(volume, machine.path("staging"), Filesystem(fs_type, (flag,)))
    assert machine.loops() == machine.mounted() == []
