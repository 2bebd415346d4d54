"""A frozen filesystem stands still, has everything on its device, and is thawed whatever dies."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.errors import FailedPrecondition, Unavailable
from agent.host import loop
from agent.model import Volume
from agent.volumes.rules.modes import Block, Filesystem

from .conftest import SIZES, Machine, have

pytestmark = pytest.mark.root

AGENT = """
import asyncio, sys
from pathlib import Path
from agent.volumes.attach.freezing import Freezer
async def main():
    async with Freezer(Path(sys.argv[1]), float(sys.argv[4])).frozen(sys.argv[2], Path(sys.argv[3])):
        print("frozen", flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def started(path: Path) -> subprocess.Popen[bytes]:
    """A program that writes one file and ends. While it waits for the filesystem it cannot be killed."""
    return subprocess.Popen(["sh", "-c", 'echo data > "$0"', str(path)])


def waits(process: subprocess.Popen[bytes]) -> bool:
    """Whether it waits in the kernel, uninterruptibly, for the filesystem."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "D"


async def staged(machine: Machine, fs_type: str = "ext4") -> tuple[Volume, Path]:
    volume, staging = machine.volume(size_bytes=SIZES[fs_type]), machine.path("staging")
    await machine.node().stage(volume, staging, Filesystem(fs_type))
    return volume, staging


async def device_of(machine: Machine, volume: Volume) -> Path:
    device = await loop.find(machine.files[volume.meta.name])
    assert device is not None
    return device


def notes(machine: Machine) -> list[str]:
    folder = machine.state / "frozen"
    return [entry.name for entry in folder.iterdir()] if folder.exists() else []


@pytest.mark.parametrize("fs_type", SIZES)
async def test_a_writer_waits_and_goes_on(machine: Machine, fs_type: str) -> None:
    if reason := have(f"mkfs.{fs_type}"):
        pytest.skip(reason)
    volume, staging = await staged(machine, fs_type)
    async with machine.node().frozen(volume):
        process = started(staging / "file")
        await until(lambda: waits(process))
        assert notes(machine)
    await until(lambda: process.poll() == 0)
    assert (staging / "file").read_text() == "data\n"
    assert notes(machine) == []


async def test_the_device_has_everything_that_was_written(machine: Machine, tmp_path: Path) -> None:
    volume, staging = await staged(machine)
    (staging / "file").write_bytes(b"never synced")
    async with machine.node().frozen(volume):
        shutil.copyfile(machine.files[volume.meta.name], tmp_path / "copy")
    argv = ["debugfs", "-R", "cat /file", str(tmp_path / "copy")]
    assert subprocess.run(argv, capture_output=True, check=True).stdout == b"never synced"  # noqa: ASYNC221
    header = subprocess.run(["dumpe2fs", "-h", str(tmp_path / "copy")], capture_output=True, check=True)  # noqa: ASYNC221
    assert b"needs_recovery" not in header.stdout


async def test_longer_than_allowed_is_thawed_and_told(machine: Machine) -> None:
    volume, staging = await staged(machine)
    process = started(staging / "before")
    await until(lambda: process.poll() == 0)
    node = machine.node(freeze_timeout_s=0.2)
    with pytest.raises(Unavailable, match="longer"):
        async with node.frozen(volume):
            process = started(staging / "file")
            await until(lambda: process.poll() == 0)  # inside the block: it is thawed although nobody said so
    assert notes(machine) == []
    async with node.frozen(volume):
        pass


async def test_the_own_error_of_the_block_is_told(machine: Machine) -> None:
    volume, staging = await staged(machine)
    with pytest.raises(FailedPrecondition, match="mine"):
        async with machine.node(freeze_timeout_s=0.2).frozen(volume):
            process = started(staging / "file")
            await until(lambda: process.poll() == 0)
            raise FailedPrecondition("mine")
    assert notes(machine) == []


async def test_a_cancelled_block_thaws(machine: Machine) -> None:
    volume, staging = await staged(machine)
    inside = asyncio.Event()

    async def snapshot() -> None:
        async with machine.node().frozen(volume):
            inside.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(snapshot())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    process = started(staging / "file")
    await until(lambda: process.poll() == 0)
    assert notes(machine) == []


@pytest.mark.parametrize("how", ["nowhere", "read-only", "raw"])
async def test_nothing_to_freeze(machine: Machine, how: str) -> None:
    volume, staging = machine.volume(readonly=how == "read-only"), machine.path("staging")
    if how == "read-only":
        subprocess.run(["mkfs.ext4", "-q", str(machine.files[volume.meta.name])], check=True)  # noqa: ASYNC221
        await machine.node().stage(volume, staging, Filesystem())
    elif how == "raw":
        await machine.node().stage(volume, staging, Block())
    async with machine.node().frozen(volume):
        assert notes(machine) == []


@asynccontextmanager
async def frozen_by_an_agent(
    machine: Machine, volume: Volume, timeout_s: float = 60
) -> AsyncIterator[tuple[subprocess.Popen[bytes], int]]:
    """Another agent's process that has the volume frozen, and the pid of what holds it for it."""
    device = await device_of(machine, volume)
    argv = [sys.executable, "-c", AGENT, str(machine.state / "frozen"), volume.meta.name, str(device)]
    argv += [str(timeout_s)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:  # noqa: ASYNC220 - short
        assert process.stdout is not None
        try:
            assert await asyncio.to_thread(process.stdout.readline) == b"frozen\n"
            threads = Path(f"/proc/{process.pid}/task").iterdir()  # noqa: ASYNC240
            (holder,) = [int(pid) for thread in threads for pid in (thread / "children").read_text().split()]
            yield process, holder
        finally:
            process.kill()


async def test_a_killed_agent_thaws(machine: Machine) -> None:
    volume, staging = await staged(machine)
    async with frozen_by_an_agent(machine, volume) as (agent, _):
        process = started(staging / "file")
        await until(lambda: waits(process))
        agent.kill()
        await until(lambda: process.poll() == 0)
    await machine.node().thaw_leftovers()
    assert notes(machine) == []


async def test_an_agent_that_hangs_is_not_waited_for(machine: Machine) -> None:
    volume, staging = await staged(machine)
    async with frozen_by_an_agent(machine, volume, timeout_s=1.0) as (agent, _):
        agent.send_signal(signal.SIGSTOP)
        process = started(staging / "file")
        await until(lambda: process.poll() == 0)


async def test_a_killed_holder_is_thawed_by_the_agent(machine: Machine) -> None:
    volume, staging = await staged(machine)
    async with frozen_by_an_agent(machine, volume) as (_, holder):
        process = started(staging / "file")
        await until(lambda: waits(process))
        os.kill(holder, signal.SIGKILL)
        await until(lambda: process.poll() == 0)


@pytest.mark.parametrize("by", ["the next start", "the next freeze"])
async def test_both_killed_is_thawed_later(machine: Machine, by: str) -> None:
    volume, staging = await staged(machine)
    async with frozen_by_an_agent(machine, volume) as (agent, holder):
        agent.send_signal(signal.SIGSTOP)
        os.kill(holder, signal.SIGKILL)
        agent.kill()
        await asyncio.to_thread(agent.wait)
    process = started(staging / "file")
    await until(lambda: waits(process))
    assert notes(machine)
    if by == "the next start":
        await machine.node().thaw_leftovers()
    else:
        async with machine.node().frozen(volume):
            pass
    await until(lambda: process.poll() == 0)
    await machine.node().unstage(volume.meta.name, volume, staging)
    assert notes(machine) == []


async def test_unstage_thaws_for_good(machine: Machine) -> None:
    volume, staging = await staged(machine)
    async with frozen_by_an_agent(machine, volume) as (agent, holder):
        agent.send_signal(signal.SIGSTOP)
        os.kill(holder, signal.SIGKILL)
        agent.kill()
    await machine.node().unstage(volume.meta.name, volume, staging)
    assert machine.loops() == []
    assert notes(machine) == []


async def test_somebody_elses_freeze_is_used_and_left(machine: Machine) -> None:
    volume, staging = await staged(machine)
    subprocess.run(["fsfreeze", "-f", str(staging)], check=True)  # noqa: ASYNC221
    try:
        async with machine.node().frozen(volume):
            pass
        process = started(staging / "file")
        await until(lambda: waits(process))
        subprocess.run(["fsfreeze", "-u", str(staging)], check=True)  # noqa: ASYNC221
        await until(lambda: process.poll() == 0)
    finally:
        subprocess.run(["fsfreeze", "-u", str(staging)], check=False, capture_output=True)  # noqa: ASYNC221


@pytest.mark.parametrize("whose", ["ours", "theirs"])
async def test_thawed_by_somebody_else_is_told(machine: Machine, whose: str) -> None:
    volume, staging = await staged(machine)
    if whose == "theirs":
        subprocess.run(["fsfreeze", "-f", str(staging)], check=True)  # noqa: ASYNC221
    with pytest.raises(Unavailable, match="somebody else"):
        async with machine.node().frozen(volume):
            subprocess.run(["fsfreeze", "-u", str(staging)], check=True)  # noqa: ASYNC221
    process = started(staging / "file")
    await until(lambda: process.poll() == 0)
