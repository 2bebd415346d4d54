"""What a cluster's store spares itself and the API."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from agent.model import Attachment, Meta, Tier, Volume, VolumePhase, VolumeSpec
from agent.store.kubernetes.connection import IN_FLIGHT
from agent.store.kubernetes.leases import Leases
from agent.store.kubernetes.store import KubernetesStore

from .conftest import Opener
from .gate import Gate, Rule

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
