"""Frontend `loop` writes past the target: the pool counts it all the same, so that warning and reserve hold."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from agent.config.settings import PoolSettings, Settings
from agent.csi.client import CallFailed, CsiClient
from agent.daemon.standalone import Standalone
from tests.contract.waiting import until

MIB = 1 << 20
LOOP = {"tier": "ssd", "frontend": "loop"}
POOL = PoolSettings(refresh_interval_s=0.2, warning_percent=50, reserve_percent=10)

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/loop-control").exists(), reason="needs root, loop devices"),
    pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="mkfs.ext4 not found"),
]


def write(file: Path, mib: int) -> None:
    command = ["dd", "if=/dev/urandom", f"of={file}", "bs=1M", f"count={mib}", "conv=fsync"]
    subprocess.run(command, check=True, capture_output=True)


def remove(file: Path) -> None:
    file.unlink()
    subprocess.run(["sync", "-f", str(file.parent)], check=True)  # ext4 frees blocks when its journal is committed
    subprocess.run(["fstrim", str(file.parent)], check=True)


async def test_warning_and_reserve_hold_for_what_loop_devices_write(
    settings: Callable[..., Settings], folder: Path
) -> None:
    (folder / "pods").mkdir()
    here = settings(f"{folder}/d.img:256MiB:ssd", mount_roots=(folder / "pods",), pool=POOL)
    at = folder / "pods" / "stage"
    async with Standalone(here) as agent, CsiClient(here.csi_endpoint, timeout_s=30) as csi:
        await agent.wait_ready(30)
        volume = await csi.create_volume("v", 400 * MIB, LOOP)
        await csi.publish(volume, "node-a")
        await csi.stage(volume, at)
        try:

            async def told() -> tuple[bool, str]:
                how = (await csi.get_volume(volume)).status.volume_condition
                return how.abnormal, how.message

            assert not (await told())[0]
            write(at / "first", 140)
            await until(told, lambda seen: seen[0] and "is nearly full (" in seen[1])
            await csi.delete_volume(await csi.create_volume("still fine", 16 * MIB, LOOP))
            write(at / "second", 78)
            await until(told, lambda seen: "takes no new volumes" in seen[1])
            with pytest.raises(CallFailed, match="delete snapshots or volumes") as refused:
                await csi.create_volume("too much", 16 * MIB, LOOP)
            assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await csi.capacity({"tier": "ssd"}) == 0
            remove(at / "first")
            remove(at / "second")
            await until(told, lambda seen: not seen[0])
            assert await csi.capacity({"tier": "ssd"}) > 0
        finally:
            await csi.unstage(volume, at)
            await csi.unpublish(volume, "node-a")
            await csi.delete_volume(volume)
