"""What is staged or published, and asked for again: in the same way, however it is spelt, or in another."""

from __future__ import annotations

import pytest

from agent.errors import AlreadyExists, FailedPrecondition, QuarryError
from agent.host import mount_options
from agent.volumes.rules.modes import Block, Filesystem, VolumeMode

from .conftest import Machine, have

pytestmark = pytest.mark.root
EXT4 = Filesystem()


def with_flags(*flags: str) -> Filesystem:
    return Filesystem("ext4", flags)


@pytest.mark.parametrize(
    ("flags", "readonly"),
    [
        (("ro",), True),
        (("noatime,ro",), True),
        (("ro", "rw"), False),
        (("rw", "ro"), True),
        (("ro,rw", "noatime"), False),
        (("defaults", "ro"), True),
        (('context="system_u:object_r:a_t:s0:c1,ro"',), False),
        (("errors=remount-ro",), False),
    ],
)
async def test_flags_count_by_their_effect(machine: Machine, flags: tuple[str, ...], readonly: bool) -> None:
    assert mount_options.is_readonly(flags) is readonly
    if "context" in flags[0]:
        return  # needs a kernel with SELinux
    volume, staging, target, node = machine.volume(), machine.path("staging"), machine.mounts / "target", machine.node()
    mode = with_flags(*flags)  # also of a volume that is blank: its user does not write, we may
    for _ in range(2):
        await node.stage(volume, staging, mode)
        await node.publish(volume, staging, target, mode, readonly=False)
    for path in (staging, target):
        if readonly:
            with pytest.raises(OSError, match="Read-only"):
                (path / "x").touch()
        else:
            (path / "x").touch()
    if readonly:
        with pytest.raises(AlreadyExists, match="as read-only"):
            await node.publish(volume, staging, target, with_flags("rw"), readonly=False)
    await node.unpublish(volume.meta.name, target)
    await node.unstage(volume.meta.name, volume, staging)
    assert machine.loops() == machine.mounted() == []


async def test_a_flag_does_not_make_a_read_only_attachment_writable(machine: Machine) -> None:
    volume, staging, node = machine.volume(), machine.path("staging"), machine.node()
    await node.stage(volume, staging, EXT4)
    await node.unstage(volume.meta.name, volume, staging)
    volume = machine.volume(readonly=True)
    await node.stage(volume, staging, with_flags("rw"))
    with pytest.raises(OSError, match="Read-only"):
        (staging / "x").touch()


@pytest.mark.parametrize(
    ("first", "again", "same"),
    [
        (("noatime", "noexec"), ("noexec,noatime",), True),
        ((), ("rw", "exec", "defaults", "relatime"), True),
        (("noexec",), (), False),
        ((), ("noexec",), False),
        (("nosuid",), ("nosuid", "nodev"), False),
        (("noatime",), ("relatime",), False),
        ((), ("strictatime",), False),
        ((), ("ro",), False),
        (("ro",), (), False),
    ],
)
async def test_staged_again_with_other_flags(
    machine: Machine, first: tuple[str, ...], again: tuple[str, ...], same: bool
) -> None:
    volume, staging, node = machine.volume(), machine.path("staging"), machine.node()
    await node.stage(volume, staging, with_flags(*first))
    if same:
        await node.stage(volume, staging, with_flags(*again))
    else:
        with pytest.raises(AlreadyExists, match=", not "):
            await node.stage(volume, staging, with_flags(*again))
    await node.stage(volume, staging, with_flags(*first))


XFS = Filesystem("xfs")
BLOCK = Block()


@pytest.mark.parametrize(
    ("mode", "readonly", "other", "other_readonly", "error"),
    [
        (EXT4, False, EXT4, True, AlreadyExists),
        (EXT4, True, EXT4, False, AlreadyExists),
        (EXT4, False, XFS, False, AlreadyExists),
        (EXT4, False, Filesystem(""), False, None),
        (EXT4, False, BLOCK, False, AlreadyExists),
        (EXT4, False, with_flags("noexec"), False, FailedPrecondition),
        (BLOCK, False, BLOCK, True, AlreadyExists),
        (BLOCK, True, BLOCK, False, AlreadyExists),
        (BLOCK, False, EXT4, False, FailedPrecondition),
        (EXT4, True, EXT4, True, None),
        (BLOCK, True, BLOCK, True, None),
    ],
)
async def test_published_again_in_another_way(
    machine: Machine,
    mode: VolumeMode,
    readonly: bool,
    other: VolumeMode,
    other_readonly: bool,
    error: type[QuarryError] | None,
) -> None:
    volume, staging, target, node = machine.volume(), machine.path("staging"), machine.mounts / "target", machine.node()
    await node.stage(volume, staging, mode)
    await node.publish(volume, staging, target, mode, readonly=readonly)
    before = machine.mounted()
    for _ in range(2):
        if error is None:
            await node.publish(volume, staging, target, other, readonly=other_readonly)
        else:
            with pytest.raises(error):
                await node.publish(volume, staging, target, other, readonly=other_readonly)
    assert machine.mounted() == before
    await node.publish(volume, staging, target, mode, readonly=readonly)


async def test_staged_again_as_something_else(machine: Machine) -> None:
    if reason := have("mkfs.xfs"):
        pytest.skip(reason)
    volume, staging, target, node = machine.volume(), machine.path("staging"), machine.mounts / "target", machine.node()
    await node.stage(volume, staging, EXT4)
    for other, readonly in ((XFS, False), (Block(), False), (EXT4, True)):
        with pytest.raises(AlreadyExists):
            await node.stage(volume, staging, other, readonly=readonly)
    with pytest.raises(FailedPrecondition, match="staged as ext4, not as xfs"):
        await node.publish(volume, staging, target, XFS, readonly=False)
    assert not target.exists()
