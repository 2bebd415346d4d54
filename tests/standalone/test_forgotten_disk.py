"""A disk that is lost for good is forgotten: what lay there can be deleted, and its names and new disks are usable."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent.cli.exit_codes import ExitCode
from agent.csi.client import CallFailed, from_snapshot
from agent.model import Disk
from agent.pools.names import is_held_name
from agent.store.local import open_local
from tests.crash.machine import NODE, Machine, Patient, holdings

MIB = 1 << 20
SSD = {"tier": "ssd"}
pytestmark = pytest.mark.timeout(240)


class Owner:
    """Volumes and snapshots on the one disk of a machine, and what a person does about it."""

    def __init__(self, machine: Machine, csi: Patient) -> None:
        self.machine, self.csi = machine, csi
        self.volumes: list[str] = []
        self.snapshot = ""

    async def fill(self) -> None:
        """A published volume, its snapshot, a volume made of that, and one by itself."""
        first = await self.csi.call("create_volume", "first", 16 * MIB, SSD)
        self.snapshot = (await self.csi.call("create_snapshot", "s", first)).snapshot_id
        clone = await self.csi.call("create_volume", "clone", 16 * MIB, SSD, source=from_snapshot(self.snapshot))
        await self.csi.call("publish", first, NODE)
        self.volumes = [first, clone, await self.csi.call("create_volume", "last", 16 * MIB, SSD)]

    async def swap_disk(self, how: str) -> Path:
        """Everything stops, the disk goes, everything is started again."""
        self.machine.kill_agent()
        self.machine.target.kill()
        away = self.machine.disk.rename(self.machine.folder / "away.img")
        if how != "gone":
            with self.machine.disk.open("wb") as file:
                file.write(b"somebody's" if how == "other data" else b"")
                file.truncate(1 << 30)
        await self.begin()
        return away

    async def begin(self) -> None:
        self.machine.target.start()
        self.machine.start_agent()
        await self.csi.wait_ready()

    async def quarry(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "agent.cli.main", *arguments, "--state-dir", str(self.machine.folder / "agent")]
        return await asyncio.to_thread(
            subprocess.run, argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )

    async def shown(self, volume: str) -> Any:
        done = await self.quarry("volumes", "show", volume, "-o", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    async def refuses(self, code: grpc.StatusCode, text: str, method: str, *arguments: Any) -> None:
        with pytest.raises(CallFailed, match=text) as failure:
            await getattr(self.csi.client, method)(*arguments)
        assert failure.value.code is code

    async def delete_all(self) -> None:
        await self.csi.call("unpublish", self.volumes[0], NODE)
        for volume in self.volumes:
            await self.csi.call("delete_volume", volume)
        await self.csi.call("delete_snapshot", self.snapshot)
        assert not (await self.csi.call("list_volumes")).entries
        assert not (await self.csi.call("list_snapshots")).entries
        assert not (await holdings(self.machine.target.socket_path)).exports


@pytest.fixture
async def owner(machine: Machine) -> AsyncIterator[Owner]:
    machine.start_agent()
    csi = Patient(machine.endpoint)
    try:
        await csi.wait_ready()
        owner = Owner(machine, csi)
        await owner.fill()
        yield owner
    finally:
        await csi.close()


@pytest.mark.parametrize("how", ["gone", "blank", "other data"])
async def test_what_lay_on_a_forgotten_disk_can_be_deleted(owner: Owner, how: str) -> None:
    served = await owner.quarry("disks", "forget", str(owner.machine.disk), "--yes")
    assert (served.returncode, "release it instead" in served.stderr) == (ExitCode.PRECONDITION, True)

    await owner.swap_disk(how)
    for volume in owner.volumes:
        assert not any(each["ready"] for each in (await owner.shown(volume))["status"]["replicas"])
        assert "    ready" not in (await owner.quarry("volumes", "show", volume)).stdout
    last = owner.volumes[-1]
    await owner.refuses(grpc.StatusCode.UNAVAILABLE, "quarry disks forget", "delete_volume", last)
    await owner.refuses(grpc.StatusCode.UNAVAILABLE, "quarry disks forget", "delete_snapshot", owner.snapshot)

    asked = await owner.quarry("disks", "forget", str(owner.machine.disk))
    assert asked.returncode == ExitCode.USAGE, "nobody to ask, and --yes is not given"
    assert last in asked.stdout and owner.snapshot in asked.stdout
    done = await owner.quarry("disks", "forget", str(owner.machine.disk), "--yes", "-o", "json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (sorted(told["volumes"]), told["snapshots"]) == (sorted(owner.volumes), [owner.snapshot])

    shown = await owner.shown(owner.volumes[0])
    assert shown["status"]["phase"] == "Failed"
    assert "its data are lost" in shown["condition"]["message"]
    await owner.refuses(grpc.StatusCode.FAILED_PRECONDITION, "its data are lost", "publish", owner.volumes[1], NODE)
    await owner.refuses(grpc.StatusCode.FAILED_PRECONDITION, "are lost", "create_snapshot", "t", owner.volumes[1])
    await owner.delete_all()
    if how == "other data":
        assert owner.machine.disk.read_bytes()[:10] == b"somebody's"
        owner.machine.disk.unlink()

    owner.machine.kill_agent()
    owner.machine.target.kill()
    await owner.begin()
    assert await owner.csi.call("create_volume", "last", 16 * MIB, SSD) == last
    await owner.csi.call("publish", last, NODE)


async def test_a_record_that_went_while_nobody_looked_is_a_forgotten_disk(owner: Owner) -> None:
    """As `kubectl delete disk` may, while the agent is down; and as the death of an agent that gives up in between."""
    await owner.swap_disk("other data")
    owner.machine.kill_agent()
    store = await open_local(owner.machine.folder / "agent" / "quarry.db")
    for disk in await store.list(Disk):
        await store.delete(Disk, disk.meta.name)
    await store.close()
    owner.machine.start_agent()
    await owner.csi.wait_ready()
    await owner.delete_all()


async def test_a_forgotten_disk_that_comes_back_brings_its_volumes(owner: Owner) -> None:
    away = await owner.swap_disk("gone")
    done = await owner.quarry("disks", "forget", str(owner.machine.disk), "--yes")
    assert done.returncode == 0, done.stderr
    assert "is forgotten" in done.stdout
    owner.machine.kill_agent()
    owner.machine.target.kill()
    away.rename(owner.machine.disk)
    await owner.begin()
    await owner.csi.call("publish", owner.volumes[0], NODE)
    shown = await owner.shown(owner.volumes[0])
    assert (shown["status"]["phase"], shown["status"]["replicas"][0]["ready"]) == ("Ready", True)
    await owner.delete_all()
    left = (await holdings(owner.machine.target.socket_path)).lvols
    assert all(is_held_name(each) for each in left), "only its free space is being zeroed"
