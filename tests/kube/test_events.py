"""What happens to our objects is told as events of the Kubernetes API, as `kubectl describe` shows them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

from agent.daemon.cluster import events_of
from agent.model import Disk, DiskPhase, DiskSpec, DiskStatus, Meta, Tier, Volume, VolumePhase, VolumeSpec
from agent.store.interface import Store
from agent.volumes.service.telling import TellingStore, VolumeNews
from tests.contract.waiting import until as becomes_so

from .conftest import Opener, until
from .plane import Plane

FINE, GONE = "/dev/sda is in service", "it is not in this machine"


async def telling(open_store: Opener, stack: AsyncExitStack) -> TellingStore:
    store = await open_store()
    return TellingStore(store, events_of(store, "node", "node-a", stack))


async def becomes(store: Store, disk: Disk, phase: DiskPhase, message: str = "") -> Disk:
    return await store.update(replace(disk, status=replace(disk.status, phase=phase, message=message)))


async def test_a_disk_that_comes_and_goes(open_store: Opener, plane: Plane) -> None:
    async with AsyncExitStack() as stack:
        store = await telling(open_store, stack)
        disk = await store.create(Disk(Meta("d0"), DiskSpec(claimed=True), DiskStatus(node="node-a", path="/dev/sda")))
        for _ in range(3):
            disk = await becomes(store, disk, DiskPhase.READY)
            disk = await becomes(store, disk, DiskPhase.MISSING, GONE)
            disk = await store.update(replace(disk, spec=replace(disk.spec, claimed=not disk.spec.claimed)))

        async def all_told() -> bool:
            events = await asyncio.to_thread(plane.events, "Disk", "d0")
            return [(each.get("series") or {}).get("count") for each in events] == [3, 3]

        await until(all_told)
        found = {each["reason"]: each for each in plane.events("Disk", "d0")}
        assert set(found) == {"Ready", "Missing"}
        assert (found["Ready"]["type"], found["Ready"]["message"]) == ("Normal", FINE)
        assert (found["Missing"]["type"], found["Missing"]["message"]) == ("Warning", GONE)
        assert found["Missing"]["reportingComponent"] == "quarry-node"
        uid = plane.request("GET", "/apis/quarry.storage/v1alpha1/disks/d0")["metadata"]["uid"]
        assert found["Missing"]["involvedObject"]["uid"] == uid


async def test_a_flood_is_kept_small(open_store: Opener, plane: Plane) -> None:
    async with AsyncExitStack() as stack:
        store = await telling(open_store, stack)
        disk = await store.create(Disk(Meta("d1"), status=DiskStatus(node="node-a", path="/dev/sdb")))
        for number in range(60):
            disk = await becomes(store, disk, DiskPhase.READY)
            disk = await becomes(store, disk, DiskPhase.FAILED, f"reason {number}")

        async def some() -> bool:
            return len(await asyncio.to_thread(plane.events, "Disk", "d1")) > 10

        await until(some)
        assert len(plane.events("Disk", "d1")) < 40


async def test_what_anybody_does_to_a_volume_is_told_once(open_store: Opener, plane: Plane) -> None:
    """By the controller that leads: nodes may not tell of volumes."""
    async with AsyncExitStack() as stack:
        theirs, ours = await open_store(), await open_store()
        news = VolumeNews(ours, events_of(ours, "controller", "c0", stack))
        stack.push_async_callback(news.stop)
        news.start()
        volume = await theirs.create(Volume(Meta("vol-0"), VolumeSpec("pvc", 1 << 20, Tier.NVME)))

        async def told() -> set[str]:
            return {each["reason"] for each in await asyncio.to_thread(plane.events, "Volume", "vol-0")}

        for phase, reasons in (
            (VolumePhase.READY, set()),
            (VolumePhase.FAILED, {"Failed"}),
            (VolumePhase.READY, {"Failed", "Recovered"}),
        ):
            volume = await theirs.update(replace(volume, status=replace(volume.status, phase=phase, message="lost")))
            await becomes_so(told, lambda seen, wanted=reasons: seen == wanted)
        found = {each["reason"]: each for each in plane.events("Volume", "vol-0")}
        assert set(found) == {"Failed", "Recovered"}
        assert found["Failed"]["type"] == "Warning"
        assert found["Failed"]["reportingComponent"] == "quarry-controller"
        await theirs.delete(Volume, "vol-0")
