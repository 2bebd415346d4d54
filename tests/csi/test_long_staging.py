"""mkfs that takes longer than the caller waits, through the CSI socket: what the caller reads, and what ends it."""

# ruff: noqa: ASYNC240, ASYNC110 - a test may block its loop for a stat, and repeats calls as an orchestrator does
from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from grpc import StatusCode

from agent.csi.client import CallFailed, capability
from agent.csi.pb import csi_pb2 as csi
from agent.host.process import find_program

from .conftest import NODE, Machine

MIB = 1 << 20
LOOP = {"frontend": "loop"}

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root"),
    pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="this kernel has no loop devices"),
]


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that mkfs.ext4 waits for before it begins."""
    made, program = tmp_path / "open", tmp_path / "mkfs.ext4"
    real = find_program("mkfs.ext4")
    program.write_text(f'#!/bin/sh\nwhile [ ! -e {made} ]; do sleep 0.05; done\nexec {real} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return made


async def stage(machine: Machine, volume: str, path: Path, timeout_s: float) -> tuple[StatusCode, str]:
    """How the call is answered."""
    what = capability(fs_type="ext4")
    request = csi.NodeStageVolumeRequest(volume_id=volume, staging_target_path=str(path), volume_capability=what)
    try:
        await machine.client.call("Node/NodeStageVolume", request, timeout_s)
    except CallFailed as error:
        return error.code, error.details
    return StatusCode.OK, ""


async def test_what_a_caller_that_repeats_the_call_reads(machine: Machine, gate: Path) -> None:
    client, path = machine.client, machine.folder / "pods" / "staging"
    volume = await client.create_volume("a", 64 * MIB, LOOP)
    await client.publish(volume, NODE)
    for _ in range(2):
        code, details = await stage(machine, volume, path, 1.5)
        assert (code, "is being formatted with ext4 for" in details) == (StatusCode.ABORTED, True)
    condition = (await client.stats(volume, path)).volume_condition
    assert condition.abnormal
    assert "it cannot be used yet: it is being formatted with ext4" in condition.message
    gate.touch()
    async with asyncio.timeout(30):
        while (answer := await stage(machine, volume, path, 1.5))[0] is StatusCode.ABORTED:
            await asyncio.sleep(0.05)
    assert answer == (StatusCode.OK, "")
    assert not (await client.stats(volume, path)).volume_condition.abnormal
    await client.unstage(volume, path)
    await client.unpublish(volume, NODE)
    await client.delete_volume(volume)


async def test_it_ends_with_the_volume(machine: Machine, gate: Path) -> None:
    """Given up for good: unpublished by force and deleted under it."""
    client, path = machine.client, machine.folder / "pods" / "staging"
    volume = await client.create_volume("a", 64 * MIB, LOOP)
    await client.publish(volume, NODE)
    assert (await stage(machine, volume, path, 1.5))[0] is StatusCode.ABORTED
    with pytest.raises(CallFailed) as waiting:
        await client.unstage(volume, path)
    assert waiting.value.code is StatusCode.ABORTED
    await client.unpublish(volume, NODE)
    await client.delete_volume(volume)
    await client.unstage(volume, path)
    assert not path.is_mount()
    assert not gate.exists()
