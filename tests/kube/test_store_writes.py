"""The store of a cluster: what operations ask of the API, and others who write meanwhile."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from agent.errors import Conflict, Unavailable
from agent.model import (
    Disk,
    Meta,
    Volume,
)
from agent.store.kubernetes.store import KubernetesStore

from .conftest import Opener, until
from .gate import Gate, Rule
from .objects import MERGE, VOLUMES, resized, told, volume
from .plane import Plane


async def test_requests_of_each_operation(store: KubernetesStore, gate: Gate) -> None:
    async def costs() -> list[str]:
        made, gate.seen[:] = gate.writes(), []
        return made

    await costs()
    a = await store.create(volume())
    assert await costs() == ["POST"]
    a = await store.update(resized(a, 2 << 30))
    assert await costs() == ["PATCH"]
    a = await store.update(told(a, "x"))
    assert await costs() == ["PATCH"]
    a = await store.update(told(resized(a, 3 << 30), "y"))
    assert await costs() == ["PATCH", "PATCH"]
    a = await store.update(replace(a, meta=replace(a.meta, deleting=True)))
    assert await costs() == ["DELETE"]
    await store.delete(Volume, a.meta.name)
    assert await costs() == ["PATCH"]
    before = store.requests
    for _ in range(100):
        await store.get(Volume, "vol-a")
        await store.list(Volume)
    assert store.requests == before


async def test_lists_of_more_than_a_page(store: KubernetesStore, open_store: Opener) -> None:
    await asyncio.gather(*(store.create(Disk(Meta(f"d{i}"))) for i in range(620)))
    assert len(await (await open_store()).list(Disk)) == 620


async def test_no_update_of_two_stores_is_lost(open_store: Opener) -> None:
    async def count(store: KubernetesStore) -> None:
        for _ in range(8):
            while True:
                found = await store.get(Volume, "vol-a")
                try:
                    await store.update(resized(found, found.spec.size_bytes + 1) if found else volume())
                    break
                except Conflict:
                    continue

    one, two = await open_store(), await open_store()
    await one.create(volume(size_bytes=1))
    await until(lambda: two.get(Volume, "vol-a"))
    await asyncio.gather(*(count(store) for store in (one, two) for _ in range(4)))
    fresh = await (await open_store()).get(Volume, "vol-a")
    assert fresh is not None
    assert fresh.spec.size_bytes == 1 + 2 * 4 * 8


async def test_cut_off_between_spec_and_status_the_wish_is_kept(
    store: KubernetesStore, open_store: Opener, gate: Gate
) -> None:
    a = await store.create(volume())
    gate.rules = [Rule("PATCH", "/status", status=500)]
    with pytest.raises(Unavailable):
        await store.update(told(resized(a, 5 << 30), "grown"))
    gate.rules = []
    for each in (store, await open_store()):
        found = await each.get(Volume, "vol-a")
        assert found is not None
        assert found.spec.size_bytes == 5 << 30
        assert found.status == a.status
    with pytest.raises(Conflict):
        await store.update(told(resized(a, 5 << 30), "grown"))


@pytest.mark.parametrize("by_others", ["labels", "status"])
async def test_others_between_spec_and_status(store: KubernetesStore, gate: Gate, plane: Plane, by_others: str) -> None:
    a = await store.create(volume())

    async def touch() -> None:
        if by_others == "labels":
            patch, part = b'{"metadata":{"labels":{"team":"blue"}}}', ""
        else:
            patch, part = b'{"status":{"message":"of others"}}', "/status"
        await asyncio.to_thread(plane.request, "PATCH", f"{VOLUMES}/vol-a{part}", patch, MERGE)

    gate.rules = [Rule("PATCH", "/status", times=1, before=touch)]
    wanted = told(resized(a, 5 << 30), "grown")
    if by_others == "labels":
        assert (await store.update(wanted)).status == wanted.status
        stored = await asyncio.to_thread(plane.request, "GET", f"{VOLUMES}/vol-a")
        assert stored["metadata"]["labels"] == {"team": "blue"}
        assert stored["status"]["message"] == "grown"
    else:
        with pytest.raises(Conflict):
            await store.update(wanted)
        found = await store.get(Volume, "vol-a")
        assert found is not None
        assert found.status.message == "of others"
