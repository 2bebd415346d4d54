"""What happens to our objects is told as events of the Kubernetes API, as `kubectl describe` shows them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

from agent.daemon.cluster import with_events
from agent.model import Disk, DiskPhase, DiskSpec, DiskStatus, Meta
from agent.store.interface import Store

from .conftest import Opener, until
from .plane import Plane

FINE, GONE = "/dev/sda is in service", "it is not in this machine"


async def becomes(store: Store, disk: Disk, phase: DiskPhase, message: str = "") -> Disk:
    return await store.update(replace(disk, status=replace(disk.status, phase=phase, message=message)))


async def test_a_disk_that_comes_and_goes(open_store: Opener, plane: Plane) -> None:
    async with AsyncExitStack() as stack:
        store = with_events(await open_store(), "node", "node-a", stack)
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
        store = with_events(await open_store(), "node", "node-a", stack)
        disk = await store.create(Disk(Meta("d1"), status=DiskStatus(node="node-a", path="/dev/sdb")))
        for number in range(60):
            disk = await becomes(store, disk, DiskPhase.READY)
            disk = await becomes(store, disk, DiskPhase.FAILED, f"reason {number}")

        async def some() -> bool:
            return len(await asyncio.to_thread(plane.events, "Disk", "d1")) > 10

        await until(some)
        assert len(plane.events("Disk", "d1")) < 40
