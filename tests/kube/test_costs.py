"""What a cluster's store spares itself and the API."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from agent.errors import Conflict
from agent.model import Attachment, Meta, Tier, Volume, VolumePhase, VolumeSpec
from agent.store.kubernetes.connection import IN_FLIGHT
from agent.store.kubernetes.leases import Leases
from agent.store.kubernetes.store import KubernetesStore

from .conftest import Opener, until
from .control_plane import ControlPlane
from .gate import Gate, Rule

VOLUMES = "/apis/quarry.storage/v1alpha1/volumes"
VOLUME = Volume(Meta("vol-a"), VolumeSpec(csi_name="pvc-a", size_bytes=1 << 30, tier=Tier.SSD))


def published(of: Volume) -> Volume:
    return replace(of, spec=replace(of.spec, attachments=(Attachment("node-a", "nqn.a"),)))


async def test_own_writes_are_not_read_twice(store: KubernetesStore, open_store: Opener) -> None:
    other = await open_store()
    watch, others = store.watch(Volume), other.watch(Volume)
    made = [await store.create(VOLUME)]
    made.append(await store.update(published(made[-1])))
    made.append(await store.update(replace(made[-1], status=replace(made[-1].status, phase=VolumePhase.READY))))
    for each in made:
        event = await asyncio.wait_for(anext(watch), 10)
        assert event.resource is each
        assert (await asyncio.wait_for(anext(others), 10)).resource == each


@pytest.mark.apiserver("account of who wrote which field")
async def test_the_account_of_writers_names_others_only(store: KubernetesStore, plane: ControlPlane) -> None:
    def managers() -> list[str]:
        stored = plane.request("GET", f"{VOLUMES}/vol-a")
        return [each["manager"] for each in stored["metadata"].get("managedFields", ())]

    made = await store.create(VOLUME)
    assert await asyncio.to_thread(managers) == ["quarry"]
    made = await store.update(published(made))
    made = await store.update(replace(made, status=replace(made.status, phase=VolumePhase.READY)))
    made = await store.update(replace(made, spec=replace(made.spec, attachments=())))
    assert await asyncio.to_thread(managers) == []
    labels = {"apiVersion": "quarry.storage/v1alpha1", "kind": "Volume", "metadata": {"labels": {"team": "blue"}}}
    applied = json.dumps(labels).encode()
    path = f"{VOLUMES}/vol-a?fieldManager=someone"
    await asyncio.to_thread(plane.request, "PATCH", path, applied, "application/apply-patch+yaml")
    assert "someone" in await asyncio.to_thread(managers)

    async def writes() -> bool:
        found = await store.get(Volume, "vol-a")
        try:
            return found is not None and bool(await store.update(published(found)))
        except Conflict:
            return False

    await until(writes)
    assert "someone" in await asyncio.to_thread(managers)


async def test_a_lease_does_not_wait_for_volumes(store: KubernetesStore, gate: Gate) -> None:
    held, release = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        held.set()
        await release.wait()

    gate.rules = [Rule("POST", "/volumes", before=hold)]
    more = 2 * IN_FLIGHT
    creating = [
        asyncio.create_task(store.create(replace(VOLUME, meta=Meta(f"vol-{number}")))) for number in range(more)
    ]
    await held.wait()
    lease = await asyncio.wait_for(Leases(store.connection, "default").write("test-costs", "me", 10, ""), 5)
    assert lease.holder == "me"
    release.set()
    assert len(await asyncio.gather(*creating)) == more
