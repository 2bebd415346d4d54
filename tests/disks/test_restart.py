"""A target that restarts has its disks and volumes back soon, also when the agent has to look at the disks again."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from agent.model import Disk, DiskPhase
from tests.contract.targets import Target
from tests.disks.loops import LoopDisk

MIB = 1 << 20
DISKS = 4


def ready(disk: Disk) -> bool:
    return disk.status.phase is DiskPhase.READY


async def test_a_target_that_restarts(start_node: Any, make_disk: Callable[..., LoopDisk], spdk_tgt: Target) -> None:
    disks = [make_disk(f"d{number}") for number in range(DISKS)]
    async with start_node(claim=[{"path": disk.device} for disk in disks]) as node:
        for disk in disks:
            await node.until(disk, ready)
        for number in range(DISKS):
            await node.csi.create_volume(f"v{number}", 16 * MIB, {"tier": "ssd"})
        spdk_tgt.restart()
        await node.until_recovered(DISKS)
        told = re.findall(r"target ready: (\d) disks, (\d) volumes in ([\d.]+) s, (\d) failed", node.log())[-1]
        print(told)
        assert told[:2] == (str(DISKS), str(DISKS))
        assert told[3] == "0"
