"""A filesystem that no mount shows but that is alive is not detached: it may hold data that was not written yet."""

from __future__ import annotations

import subprocess

import pytest

from agent.errors import Unavailable
from agent.host import blkid, loop
from agent.volumes.rules.modes import Filesystem

from .conftest import Machine

pytestmark = pytest.mark.root


async def test_a_device_is_held_while_mounted_in_another_namespace(machine: Machine) -> None:
    volume, staging = machine.volume(), machine.path("staging")
    await machine.node().stage(volume, staging, Filesystem())
    device = await loop.find(machine.files[volume.meta.name])
    assert device is not None
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; read line"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:  # noqa: ASYNC220 - short
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        with pytest.raises(Unavailable):
            await machine.node().unstage(volume.meta.name, volume, staging)
        assert await blkid.is_held(device)
        other.kill()
    await machine.node().unstage(volume.meta.name, volume, staging)
    assert machine.loops() == []
