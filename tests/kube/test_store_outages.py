"""The store of a cluster: an API that throttles, loses answers, goes away, forgets or stands still."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest

from agent.errors import Conflict, DeadlineExceeded, Unavailable
from agent.model import (
    Volume,
)
from agent.store.interface import EventType
from agent.store.kubernetes.leases import Holder, Leases
from agent.store.kubernetes.store import KubernetesStore, open_kubernetes

from .conftest import until
from .gate import Gate, Rule
from .objects import resized, volume
from .plane import API, DATABASE, Plane


async def test_told_to_come_later_it_comes_later(store: KubernetesStore, gate: Gate) -> None:
    gate.rules = [Rule("POST", times=3, status=429, headers={"Retry-After": "1"})]
    began = time.monotonic()
    made = await asyncio.gather(*(store.create(volume(f"v{i}")) for i in range(3)))
    assert len(made) == 3
    assert time.monotonic() - began >= 1.0
    assert gate.writes().count("POST") == 6


async def test_an_api_that_knows_no_roles_yet_is_waited_for(store: KubernetesStore, gate: Gate) -> None:
    """As one that has just started."""
    gate.rules = [Rule("GET", "/leases", times=2, status=403)]
    lease = Holder(Leases(store.connection, "default"), "test-outages", "me", lease_s=10, renew_s=0.2)
    await asyncio.wait_for(lease.acquire(), 10)
    assert lease.holds
    assert gate.rules[0].met == 2
    await lease.release()


@pytest.mark.parametrize("operation", ["create", "update", "delete"])
async def test_a_lost_answer_is_said_and_what_happened_is_seen(
    store: KubernetesStore, gate: Gate, operation: str
) -> None:
    a = await store.create(volume("old"))
    gate.rules = [Rule(method, times=1, lose_answer=True) for method in ("POST", "PATCH", "DELETE")]
    with pytest.raises(Unavailable):
        if operation == "create":
            await store.create(volume("new"))
        elif operation == "update":
            await store.update(resized(a, 9 << 30))
        else:
            await store.delete(Volume, "old")
    gate.rules = []

    async def seen() -> bool:
        found = await store.get(Volume, "new" if operation == "create" else "old")
        if found is None:
            return operation == "delete"
        return operation == "create" or found.meta.version > a.meta.version

    await until(seen)


async def test_an_api_that_is_away_is_waited_for_without_haste(
    store: KubernetesStore, gate: Gate, plane: Plane
) -> None:
    a = await store.create(volume())
    watch = store.watch(Volume)
    plane.kill(API)
    gate.cut()
    before = store.requests
    write = asyncio.ensure_future(store.get(Volume, "vol-a"))
    assert await write == a
    with pytest.raises(Unavailable):
        await store.update(resized(a, 2 << 30))
    await asyncio.sleep(2)  # how much is asked meanwhile is what is tested
    assert store.requests - before < 60
    plane.launch_apiserver()
    await asyncio.to_thread(plane.await_apiserver)

    async def writes_again() -> bool:
        try:
            found = await store.get(Volume, "vol-a")
            assert found is not None
            await store.update(resized(found, 3 << 30))
        except (Unavailable, DeadlineExceeded):
            return False
        return True

    await until(writes_again, 40)
    while True:
        event = await asyncio.wait_for(anext(watch), 30)
        resource = event.resource or await store.get(Volume, "vol-a")
        if resource is not None and resource.spec.size_bytes == 3 << 30:
            break


async def test_a_database_that_stands_still(store: KubernetesStore, plane: Plane) -> None:
    a = await store.create(volume())
    plane.signal(DATABASE, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises((Unavailable, DeadlineExceeded)):
        await store.update(resized(a, 2 << 30))
    assert time.monotonic() - began < 20
    assert await store.get(Volume, "vol-a") is not None
    plane.signal(DATABASE, signal.SIGCONT)

    async def writes_again() -> bool:
        found = await store.get(Volume, "vol-a")
        assert found is not None
        try:
            await store.update(resized(found, found.spec.size_bytes + 1))
        except (Unavailable, DeadlineExceeded, Conflict):
            return False
        return True

    await until(writes_again, 40)


async def test_a_version_that_is_forgotten_is_listed_again(store: KubernetesStore, gate: Gate, plane: Plane) -> None:
    await store.create(volume("stays"))
    await store.create(volume("goes"))
    watch = store.watch(Volume)
    gate.shut()
    async with asyncio.TaskGroup() as group:
        writer = await open_kubernetes(plane.kubeconfig)
        for i in range(20):
            group.create_task(writer.create(volume(f"new{i}")))
    await writer.delete(Volume, "goes")
    await writer.close()
    plane.kill(API)
    plane.launch_apiserver()
    await asyncio.to_thread(plane.await_apiserver)
    await asyncio.to_thread(plane.compact)
    gate.is_shut = False
    event = await asyncio.wait_for(anext(watch), 60)
    assert event.type is EventType.RELIST
    assert {each.meta.name for each in await store.list(Volume)} == {"stays", *(f"new{i}" for i in range(20))}
    last = await store.create(volume("last"))
    assert (await asyncio.wait_for(anext(watch), 10)).resource == last
