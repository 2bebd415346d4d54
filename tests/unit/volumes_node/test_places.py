"""Where a mount is made: on the directory that was checked, whatever its name means when the kernel is asked."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from agent.errors import AlreadyExists, QuarryError
from agent.host.mount import Mount, table
from agent.volumes.rules.modes import Block, Filesystem, VolumeMode

from .conftest import Machine, Programs

pytestmark = pytest.mark.root
EXT4 = Filesystem()


def at(path: Path) -> Mount | None:
    return next((found for found in table() if found.target == path), None)


async def test_no_mount_program_is_needed(machine: Machine, programs: Programs) -> None:
    """Those of util-linux have changed how they mount (2.39), and a machine may have another one."""
    volume, staging, target, node = machine.volume(), machine.path("staging"), machine.mounts / "target", machine.node()
    for name in ("mount", "umount"):
        programs(name, "echo 'not this one' >&2; exit 1")
    for mode in (EXT4, Block()):
        await node.stage(volume, staging, mode)
        await node.publish(volume, staging, target, mode, readonly=True)
        await node.unpublish(volume.meta.name, target)
        await node.unstage(volume.meta.name, volume, staging)
    assert machine.loops() == machine.mounted() == []


SWAP = """\
case "$*" in
    *mounter.py*) [ -L "{path}" ] || {{ mv "{path}" "{path}-moved"; ln -s "{outside}" "{path}"; }} ;;
esac
exec "$real" "$@" """


async def test_a_link_put_in_place_of_the_staging_path_is_not_followed(machine: Machine, programs: Programs) -> None:
    volume, staging, node = machine.volume(), machine.path("staging"), machine.node()
    outside = machine.home / "outside"
    outside.mkdir()
    programs("setpriv", SWAP.format(path=staging, outside=outside))
    await node.stage(volume, staging, EXT4)
    assert staging.is_symlink()
    assert machine.mounted() == [f"{staging}-moved"]


@pytest.mark.parametrize("mode", [EXT4, Block()], ids=["filesystem", "block"])
async def test_a_link_put_in_place_of_the_target_path_is_not_followed(
    machine: Machine, programs: Programs, mode: VolumeMode
) -> None:
    volume, staging, target, node = machine.volume(), machine.path("staging"), machine.mounts / "target", machine.node()
    outside = machine.home / "outside"
    outside.mkdir() if isinstance(mode, Filesystem) else outside.touch()
    await node.stage(volume, staging, mode)
    programs("setpriv", SWAP.format(path=target, outside=outside))
    await node.publish(volume, staging, target, mode, readonly=False)
    assert target.is_symlink()
    assert str(outside) not in machine.mounted()
    assert f"{target}-moved" in machine.mounted()


async def test_a_link_put_above_what_is_unmounted_is_not_followed(machine: Machine, programs: Programs) -> None:
    volume, node = machine.volume(), machine.node()
    staging = machine.path("above/staging")
    other = machine.home / "other" / "staging"
    other.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", str(other)], check=True)  # noqa: ASYNC221 - a moment
    await node.stage(volume, staging, EXT4)
    programs("setpriv", SWAP.format(path=staging.parent, outside=other.parent))
    await node.unstage(volume.meta.name, volume, staging)
    assert machine.mounted() == [str(other)]


async def test_a_read_only_publication_is_at_no_time_writable(machine: Machine, programs: Programs) -> None:
    """An agent that dies between two programs would leave it so."""
    volume, staging, target, node = machine.volume(), machine.path("staging"), machine.mounts / "target", machine.node()
    await node.stage(volume, staging, EXT4)
    log = machine.home / "log"
    programs("setpriv", f'grep " {target} " /proc/self/mountinfo >> {log}; exec "$real" "$@"')
    await node.publish(volume, staging, target, EXT4, readonly=True)
    assert log.read_text() == "", "another program is started, and it is mounted already"
    published = at(target)
    assert published is not None
    assert "ro" in published.options
    (staging / "x").touch()
    with pytest.raises(OSError, match="Read-only"):
        (target / "y").touch()


async def test_what_is_published_writable_is_not_made_read_only_under_its_user(machine: Machine) -> None:
    volume, staging, target, node = machine.volume(), machine.path("staging"), machine.mounts / "target", machine.node()
    await node.stage(volume, staging, EXT4)
    await node.publish(volume, staging, target, EXT4, readonly=False)
    with pytest.raises(AlreadyExists, match="as writable, not read-only"):
        await node.publish(volume, staging, target, EXT4, readonly=True)
    (target / "x").touch()


@pytest.mark.parametrize(
    ("flags", "of_mount", "of_filesystem"),
    [
        (("nosuid,nodev,noexec", "noatime", "nodiratime"), "rw,nosuid,nodev,noexec,noatime,nodiratime", "rw"),
        (("noatime", "relatime"), "rw,relatime", "rw"),
        (("noexec", "exec", "strictatime"), "rw", "rw"),
        (("ro", "rw"), "rw,relatime", "rw"),
        (("rw,ro",), "ro,relatime", "ro"),
        (
            ("sync", "nodiscard", "commit=30", "errors=remount-ro"),
            "rw,sync,relatime",
            "rw,sync,errors=remount-ro,commit=30",
        ),
        (("defaults", "_netdev", "nofail", "x-systemd.automount"), "rw,relatime", "rw"),
    ],
)
async def test_flags_have_their_meaning(
    machine: Machine, flags: tuple[str, ...], of_mount: str, of_filesystem: str
) -> None:
    """As mount(8) gives it to them."""
    volume, staging = machine.volume(), machine.path("staging")
    await machine.node().stage(volume, staging, Filesystem("ext4", flags))
    found = at(staging)
    assert found is not None
    assert found.options == set(of_mount.split(",")) - {"sync"}
    assert found.super_options >= set(of_filesystem.split(","))
    assert found.super_options <= set(of_filesystem.split(",")) | {"seclabel", "relatime", "errors=remount-ro"}


@pytest.mark.parametrize("flag", ["user", "shared", "no-such-flag", "commit=soon"])
async def test_the_kernel_says_which_flag_it_does_not_take(machine: Machine, flag: str) -> None:
    with pytest.raises(QuarryError, match=rf"mount_flags.*{flag.partition('=')[0]}"):
        await machine.node().stage(machine.volume(), machine.path("staging"), Filesystem("ext4", ("noatime", flag)))
    assert machine.loops() == machine.mounted() == []
