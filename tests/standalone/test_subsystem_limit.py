"""A target that exports as many volumes as it can: said before it refuses one, by name, and taken back."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from agent.config.settings import Settings
from agent.csi.client import CallFailed, CsiClient
from agent.daemon.standalone import Standalone
from agent.model import Disk
from agent.spdk import nvmf
from agent.spdk.client import Client
from agent.store.local import open_local
from tests.contract.targets import DIE_WITH_US
from tests.contract.waiting import until

MIB = 1 << 20
SSD = {"tier": "ssd"}
LIMIT = 8
"""Six volumes beside discovery and the port; the last is kept for a call that is under way."""


@pytest.fixture
def small_target(folder: Path) -> Iterator[Path]:
    socket = folder / "t.sock"
    argv = [sys.executable, "-m", "agent.cli.main", "target", "--rpc-socket", str(socket)]
    argv += ["--state-dir", str(folder / "t"), "--max-subsystems", str(LIMIT)]
    with (folder / "target.log").open("wb") as log:
        process = subprocess.Popen([*DIE_WITH_US, *argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    yield socket
    process.kill()
    process.wait()


async def conditions(settings: Settings) -> dict[str, str]:
    store = await open_local(settings.state_dir / "quarry.db")
    try:
        (disk,) = [each for each in await store.list(Disk) if each.spec.claimed]
        return {each.type: each.message for each in disk.status.conditions if each.type == "TargetFull"}
    finally:
        await store.close()


async def test_new_volumes_are_refused_by_name_before_the_target_refuses_one(
    settings: Callable[..., Settings], folder: Path, small_target: Path
) -> None:
    here = settings(f"{folder}/d.img:512MiB:ssd", spdk_socket=small_target)
    async with Standalone(here) as agent, CsiClient(here.csi_endpoint, timeout_s=30) as csi:
        await agent.wait_ready(30)
        async with Client(small_target) as rpc:
            await rpc.wait_connected(10)
            assert await nvmf.max_subsystems(rpc) == LIMIT
        volumes = [await csi.create_volume(f"v{number}", 16 * MIB, SSD) for number in range(5)]

        async def told() -> dict[str, str]:
            return await conditions(here)

        found = await until(told, bool)
        assert f"({LIMIT} subsystems)" in found["TargetFull"]
        assert await csi.capacity(SSD) == 0
        with pytest.raises(CallFailed, match=r"nvmf_set_max_subsystems .* restart it") as refused:
            await csi.create_volume("one too many", 16 * MIB, SSD)
        assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await csi.create_volume("v0", 16 * MIB, SSD) == volumes[0], "what is there is there"
        await csi.publish(volumes[0], "node-a")

        await csi.delete_volume(volumes.pop())
        await until(told, lambda seen: not seen)
        assert await csi.capacity(SSD) > 0
        await csi.create_volume("fits again", 16 * MIB, SSD)


async def test_a_burst_beyond_the_limit_is_refused_by_name(
    settings: Callable[..., Settings], folder: Path, small_target: Path
) -> None:
    here = settings(f"{folder}/d.img:512MiB:ssd", spdk_socket=small_target)
    async with Standalone(here) as agent, CsiClient(here.csi_endpoint, timeout_s=30) as csi:
        await agent.wait_ready(30)
        made = [csi.create_volume(f"v{number}", 16 * MIB, SSD) for number in range(12)]
        answers = await asyncio.gather(*made, return_exceptions=True)
        refused = [each for each in answers if isinstance(each, CallFailed)]
        assert len(refused) == 12 - (LIMIT - 2)
        for each in refused:
            assert each.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "max_subsystems" in (each.details or "")
        assert len((await csi.list_volumes()).entries) == LIMIT - 2
