"""`quarry disks claim` and `release`, as a person calls them beside a running agent."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.cli.exit_codes import ExitCode
from agent.model import DiskDriver, DiskPhase, Tier
from agent.pools.disk_driver import DRIVER
from tests.disks.loops import LoopDisk

MIB = 1 << 20


async def test_claim_use_release(start_node: Any, make_disk: Callable[..., LoopDisk]) -> None:
    disk = make_disk()
    async with start_node() as node:
        await node.until(disk, lambda disk: disk.status.eligible)
        asked = await node.quarry("claim", disk.name)
        assert asked.returncode == ExitCode.USAGE, "nobody to ask, and --yes is not given"
        done = await node.quarry("claim", disk.name, "--tier", "nvme", "--yes", "-o", "json")
        assert done.returncode == 0, done.stderr
        (claimed,) = json.loads(done.stdout)
        assert (claimed["path"], claimed["phase"], claimed["tier"]) == (disk.device, "Ready", "nvme")
        assert await node.csi.capacity({"tier": "nvme"}) > 0
        listed = (await node.quarry("list")).stdout.splitlines()
        assert listed[0].split()[:6] == ["NAME", "TIER", "TRANSPORT", "SIZE", "STATE", "TAKEN"]
        rows = {line.split()[0]: line.split() for line in listed}
        assert (rows[disk.name][1], "Ready" in rows[disk.name]) == ("nvme", True)
        shown = json.loads((await node.quarry("show", disk.name, "-o", "json")).stdout)
        assert (shown["tier"], shown["tier_override"], shown["phase"], shown["claimed"]) == (
            "nvme",
            "nvme",
            "Ready",
            True,
        )
        assert shown["space"]["size_bytes"] > 0
        text = (await node.quarry("show", disk.name)).stdout
        assert "Ready, claimed" in text and "promised to volumes" in text
        assert "nvme (its own: ssd)" in text
        volume = await node.csi.create_volume("v", 16 * MIB, {"tier": "nvme"})

        refused = await node.quarry("release", disk.device)
        assert refused.returncode == ExitCode.PRECONDITION
        assert volume in refused.stderr
        assert (await node.until(disk, lambda disk: True)).spec.claimed, "nothing changed"
        await node.csi.delete_volume(volume)
        done = await node.quarry("release", str(disk.file))
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == f"{disk.device}  Available"
        assert disk.is_blank()
        again = await node.quarry("claim", disk.device, "--yes")
        assert again.returncode == 0, again.stderr
        found = await node.until(disk, lambda disk: True)
        assert found.spec.tier_override is Tier.NVME, "what was said of the disk stays"


async def test_a_driver_that_the_disk_cannot_have_is_refused_and_nothing_changes(
    start_node: Any, make_disk: Callable[..., LoopDisk]
) -> None:
    disk = make_disk()
    async with start_node() as node:
        before = (await node.until(disk, lambda disk: True)).spec
        refused = await node.quarry("claim", disk.device, "--driver", "userspace", "--yes")
        assert refused.returncode == ExitCode.PRECONDITION
        assert "only NVMe disks on the PCI bus have a driver in user space" in refused.stderr
        assert (await node.until(disk, lambda disk: disk.status.conditions == ())).spec == before
        assert disk.is_blank()
        done = await node.quarry("claim", disk.device, "--driver", "kernel", "--yes")
        assert done.returncode == 0, done.stderr
        in_service = await node.quarry("claim", disk.device, "--driver", "userspace", "--yes")
        assert "the disk is in service: release it first" in in_service.stderr
        ready = await node.until(disk, lambda disk: all(each.type != DRIVER for each in disk.status.conditions))
        assert (ready.status.phase, ready.spec.driver) == (DiskPhase.READY, DiskDriver.KERNEL)
        done = await node.quarry("release", disk.device)
        assert done.returncode == 0, done.stderr


async def test_a_disk_that_carries_something_is_refused_and_stays_unclaimed(
    start_node: Any, make_disk: Callable[..., LoopDisk]
) -> None:
    disk, other = make_disk(), make_disk("d1")
    await asyncio.to_thread(subprocess.run, ["mkfs.ext4", "-q", disk.device], check=True)
    disk.tell()
    async with start_node() as node:
        await node.until(disk, lambda disk: bool(disk.status.reasons))
        done = await node.quarry("claim", disk.device, other.device, "--yes")
        assert done.returncode == ExitCode.PRECONDITION
        assert "ext4" in done.stderr
        assert "wipefs" in done.stderr
        for each in (disk, other):
            assert not (await node.until(each, lambda disk: True)).spec.claimed


async def test_a_copy_of_a_disk_is_told_what_it_is(start_node: Any, make_disk: Callable[..., LoopDisk]) -> None:
    disk = make_disk()
    twin = LoopDisk(disk.file)
    twin.plug()  # two devices that say to be one disk
    try:
        async with start_node() as node:
            done = await node.quarry("claim", twin.device, "--yes")
            assert done.returncode == ExitCode.PRECONDITION, done.stderr
            assert f"says to be the same disk as {disk.name}" in done.stderr
            assert disk.is_blank()
            absent = await node.quarry("claim", "/dev/nothing", "--yes")
            assert absent.returncode == ExitCode.NOT_FOUND
    finally:
        twin.close()


async def test_a_claim_ends_when_somebody_else_releases_the_disk(
    start_node: Any, make_disk: Callable[..., LoopDisk]
) -> None:
    disk = make_disk()
    async with start_node() as node:
        await node.until(disk, lambda disk: disk.status.eligible)
        with node.frozen():  # so that the claim is not carried out before it is overtaken
            claiming = asyncio.create_task(node.quarry("claim", disk.device, "--yes"))
            await node.until(disk, lambda disk: disk.spec.claimed is True)
            await node.want(disk, claimed=False)
            done = await asyncio.wait_for(claiming, 20)
        assert done.returncode == ExitCode.PRECONDITION, done.stderr
        assert "released by somebody else" in done.stderr
        assert (await node.until(disk, lambda disk: True)).spec.claimed is False


def test_without_an_agent_nothing_is_wished(folder: Path) -> None:
    argv = [sys.executable, "-m", "agent.cli.main", "disks", "claim", "sda", "--yes", "--state-dir", str(folder)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == ExitCode.UNAVAILABLE
    assert "no agent runs" in done.stderr
    assert list(folder.iterdir()) == []


async def test_a_disk_that_was_emptied_is_claimed_though_nothing_told_the_agent(
    start_node: Any, make_disk: Callable[..., LoopDisk]
) -> None:
    """Without udev's daemon there are no events of changed content. What is still on it is told as it is now."""
    disk = make_disk()
    subprocess.run(["mkfs.ext4", "-q", disk.device], check=True)  # noqa: ASYNC221
    async with start_node() as node:
        await node.until(disk, lambda disk: any("ext4" in reason for reason in disk.status.reasons))
        refused = await node.quarry("claim", disk.name, "--yes")
        assert (refused.returncode, "ext4" in refused.stderr) == (ExitCode.PRECONDITION, True)
        with disk.file.open("r+b") as file:  # as by wipefs, but for events
            file.seek(1024 + 0x38)
            file.write(bytes(2))
        subprocess.run(["blockdev", "--flushbufs", disk.device], check=True)  # noqa: ASYNC221
        refused = await node.quarry("claim", disk.name, "--yes")
        assert (refused.returncode, "blkdiscard" in refused.stderr) == (ExitCode.PRECONDITION, True)
        subprocess.run(["blkdiscard", "--zeroout", disk.device], check=True)  # noqa: ASYNC221
        done = await node.quarry("claim", disk.name, "--yes")
        assert done.returncode == 0, done.stderr
