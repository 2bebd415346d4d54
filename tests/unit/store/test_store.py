"""What every Store promises, whatever is behind it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from agent.errors import AlreadyExists, Conflict, InvalidArgument, NotFound, Unavailable
from agent.model import (
    AccessMode,
    Attachment,
    Condition,
    ConditionStatus,
    Disk,
    DiskSpec,
    Endpoint,
    Meta,
    Qos,
    Replica,
    ReplicaStatus,
    Snapshot,
    SnapshotSpec,
    StorageNode,
    Tier,
    Volume,
    VolumePhase,
    VolumeSpec,
    VolumeStatus,
)
from agent.store.interface import Event, EventType, Store

from .conftest import Limits, Opener, becomes


def volume(name: str, size_bytes: int = 1) -> Volume:
    return Volume(Meta(name), VolumeSpec(csi_name=f"pvc-{name}", size_bytes=size_bytes, tier=Tier.SSD))


def resized(of: Volume, size_bytes: int) -> Volume:
    return replace(of, spec=replace(of.spec, size_bytes=size_bytes))


FULL = Volume(
    Meta("vol-1", created_at=1.5, deleting=True),
    VolumeSpec(
        csi_name="pvc-ü/…\0 ",
        size_bytes=1 << 62,
        tier=Tier.HDD,
        placement=(Replica("r0", "n", "d"), Replica("r1", "m", "e")),
        qos=Qos(rw_iops=5),
        attachments=(Attachment("n", "nqn.x", AccessMode.ROX, readonly=True),),
        parameters=(("a", "b"), ("c", "")),
    ),
    VolumeStatus(
        VolumePhase.READY,
        replicas=(ReplicaStatus("r0", True, "uuid", Endpoint("nqn.y", "::1", 4420)), ReplicaStatus("r1")),
        conditions=(Condition("Healthy", ConditionStatus.UNKNOWN, changed_at=2.25),),
    ),
)


async def test_create_get_list_update_delete(store: Store) -> None:
    assert await store.get(Volume, "a") is None
    assert await store.list(Volume) == []
    a = await store.create(volume("a"))
    b = await store.create(volume("b"))
    assert 0 < a.meta.version < b.meta.version
    assert time.time() - 60 < a.meta.created_at <= time.time()
    assert await store.get(Volume, "a") == a
    bigger = await store.update(resized(a, 2 << 30))
    assert bigger.meta.version > b.meta.version
    assert bigger.meta.created_at == a.meta.created_at
    assert sorted(v.meta.name for v in await store.list(Volume)) == ["a", "b"]
    await store.delete(Volume, "a")
    assert await store.get(Volume, "a") is None
    assert await store.list(Volume) == [b]


@pytest.mark.parametrize(
    "resource",
    [
        FULL,
        StorageNode(Meta("n")),
        Disk(Meta("d"), DiskSpec(tier_override=Tier.NVME)),
        Snapshot(Meta("s"), SnapshotSpec("csi", "vol-1")),
    ],
)
async def test_every_field_survives(open_store: Opener, resource: Volume | StorageNode | Disk | Snapshot) -> None:
    created = await (await open_store()).create(resource)
    meta = replace(resource.meta, version=created.meta.version, created_at=created.meta.created_at)
    assert created == replace(resource, meta=meta)
    assert await (await open_store()).get(type(resource), resource.meta.name) == created


async def test_kinds_do_not_mix(store: Store) -> None:
    await store.create(volume("x"))
    await store.create(StorageNode(Meta("x")))
    await store.delete(Volume, "x")
    assert await store.get(StorageNode, "x") is not None


async def test_refusals(store: Store) -> None:
    a = await store.create(volume("a"))
    with pytest.raises(AlreadyExists):
        await store.create(volume("a", 5))
    with pytest.raises(NotFound):
        await store.update(volume("b"))
    await store.update(resized(a, 5))
    with pytest.raises(Conflict) as caught:
        await store.update(resized(a, 6))
    assert (caught.value.kind, caught.value.name, caught.value.version) == ("Volume", "a", a.meta.version)
    with pytest.raises(Conflict):
        await store.update(volume("a"))
    with pytest.raises(Conflict):
        await store.delete(Volume, "a", a.meta.version)
    await store.delete(Volume, "a")
    await store.delete(Volume, "a")
    await store.delete(Volume, "a", 1)


async def test_a_deleted_version_does_not_come_back(store: Store) -> None:
    old = await store.create(volume("a"))
    await store.delete(Volume, "a")
    await store.create(volume("a"))
    with pytest.raises(Conflict):
        await store.update(old)


NAMES = ["a", "n" * 63, "vol-0123456789abcdef", "worker-1.example.com"]


@pytest.mark.parametrize("name", [*NAMES, "\ud800", "n" * 10_000, "", "../x", "' OR 1=1 --"])
async def test_odd_names_are_names_or_refused(store: Store, name: str) -> None:
    try:
        await store.create(volume(name))
    except InvalidArgument:
        assert name not in NAMES
        assert await store.get(Volume, name) is None
    else:
        assert (await store.get(Volume, name)) is not None
    await store.create(volume("next"))


async def test_what_could_not_be_read_back_is_refused(open_store: Opener) -> None:
    store = await open_store()
    wrong = ("1GiB", float("nan"), None)
    for bad in (resized(volume("a"), size) for size in wrong):  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument):
            await store.create(bad)
    assert await (await open_store()).list(Volume) == []


async def test_one_conflict_fails_only_its_caller(store: Store) -> None:
    a = await store.create(volume("a"))
    writes = [store.create(volume(f"n{i % 20}")) for i in range(40)] + [
        store.update(resized(a, 2 + i)) for i in range(20)
    ]
    results = await asyncio.gather(*writes, return_exceptions=True)
    created = [r for r in results[:40] if isinstance(r, Volume)]
    updated = [r for r in results[40:] if isinstance(r, Volume)]
    assert (len(created), len(updated)) == (20, 1)
    assert all(isinstance(r, AlreadyExists) for r in results[:40] if not isinstance(r, Volume))
    assert all(isinstance(r, Conflict) for r in results[40:] if not isinstance(r, Volume))
    assert await store.get(Volume, "a") == updated[0]
    assert len({v.meta.version for v in [*created, *updated]}) == 21


async def test_two_handles_see_each_other(open_store: Opener, limits: Limits) -> None:
    one, two = await open_store(), await open_store()
    for i in range(20):
        a = await one.create(volume(f"v{i}"))
        await becomes(lambda name=f"v{i}": two.get(Volume, name), a, limits)
        b = await two.update(resized(a, 1 + i))
        with pytest.raises(Conflict):
            await one.update(resized(a, 77))
        assert await one.get(Volume, f"v{i}") == b
        await becomes(lambda name=f"v{i}": one.get(Volume, name), b, limits)
        assert by_name(await one.list(Volume)) == by_name(await two.list(Volume))


async def test_a_cancelled_caller_harms_nobody(store: Store) -> None:
    tasks = [asyncio.ensure_future(store.create(volume(f"v{i}"))) for i in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, Volume) for result in results[1::2])
    assert (await store.create(volume("after"))).meta.version > 0


async def test_after_close(open_store: Opener) -> None:
    store = await open_store()
    watch = store.watch(Volume)
    pending = [asyncio.ensure_future(store.create(volume(f"v{i}"))) for i in range(10)]
    await asyncio.sleep(0)
    await store.close()
    await store.close()
    assert all(isinstance(result, Volume) for result in await asyncio.gather(*pending))
    assert len([event async for event in watch]) == 10
    with pytest.raises(Unavailable, match="closed"):
        await store.get(Volume, "v0")
    with pytest.raises(Unavailable, match="closed"):
        await store.create(volume("x"))
    assert len(await (await open_store()).list(Volume)) == 10


def by_name(volumes: list[Volume]) -> dict[str, Volume]:
    return {volume.meta.name: volume for volume in volumes}


# --- watches ---------------------------------------------------------------------------------------------------


async def take(watch: AsyncIterator[Event[Volume]], count: int) -> list[Event[Volume]]:
    return [await asyncio.wait_for(anext(watch), 5) for _ in range(count)]


@pytest.mark.parametrize("other", [False, True], ids=["own writes", "another handle's writes"])
async def test_watch_tells_changes_in_order(open_store: Opener, other: bool, limits: Limits) -> None:
    store = await open_store()
    writer = await open_store() if other else store
    before = await writer.create(volume("before"))
    await becomes(lambda: store.get(Volume, "before"), before, limits)
    watch = store.watch(Volume)
    a = await writer.create(volume("a"))
    await writer.create(StorageNode(Meta("not-a-volume")))
    b = await writer.update(resized(a, 7))
    await writer.delete(Volume, "a")
    events = await take(watch, 2)
    while events[-1].type is not EventType.DELETED:
        events = [*events[:2], *(await take(watch, 1))]
        assert events[2].type is EventType.DELETED or (events[2].resource and events[2].resource.meta.deleting)
    deleting = events[2].resource is not None and events[2].resource.meta.deleting
    gone = replace(b, meta=replace(b.meta, version=events[2].version, deleting=deleting))
    assert [(e.type, e.resource) for e in events] == [
        (EventType.ADDED, a),
        (EventType.MODIFIED, b),
        (EventType.DELETED, gone),
    ]
    versions = [e.version for e in events]
    assert versions[:2] == [a.meta.version, b.meta.version]
    assert versions == sorted(set(versions))


async def test_watch_since_a_version_replays(store: Store) -> None:
    a = await store.create(volume("a"))
    b = await store.create(volume("b"))
    watch = store.watch(Volume, since=a.meta.version)
    c = await store.create(volume("c"))
    assert [e.resource for e in await take(watch, 2)] == [b, c]


async def test_watch_from_an_unknown_version_says_relist(store: Store) -> None:
    a = await store.create(volume("a"))
    ahead = store.watch(Volume, since=a.meta.version + 1000)
    assert [e.type for e in await take(ahead, 1)] == [EventType.RELIST]
    b = await store.create(volume("b"))
    assert [e.resource for e in await take(ahead, 1)] == [b]


async def test_watch_from_a_forgotten_version_says_relist(store: Store, limits: Limits) -> None:
    a = await store.create(volume("a"))
    for _ in range(0, limits.kept_changes + 1024 if limits.at_once else limits.kept_changes, 64):
        await asyncio.gather(*(store.create(StorageNode(Meta(f"n{i}"))) for i in range(64)))
        await asyncio.gather(*(store.delete(StorageNode, f"n{i}") for i in range(64)))
    assert [e.type for e in await take(store.watch(Volume, since=a.meta.version), 1)] == [EventType.RELIST]


async def test_a_slow_reader_gets_one_relist_and_stops_nobody(store: Store, limits: Limits) -> None:
    count = 3 * limits.buffer_events
    slow, quick = store.watch(Volume), store.watch(Volume)
    seen = asyncio.ensure_future(take(quick, count))
    for start in range(0, count, 64):
        await asyncio.gather(*(store.create(volume(f"v{start + i}")) for i in range(64)))
    assert [e.type for e in await seen] == [EventType.ADDED] * count
    relist = (await take(slow, 1))[0]
    assert relist.type is EventType.RELIST
    known = {v.meta.name: v.meta.version for v in await store.list(Volume)}
    last = await store.create(volume("last"))
    rest = []
    while not rest or rest[-1].resource != last:
        rest += await take(slow, 1)
    assert len(rest) <= limits.buffer_events
    assert {e.type for e in rest} == {EventType.ADDED}
    assert relist.version <= max(known.values())
    assert [e.version for e in rest] == sorted(v for v in (*known.values(), last.meta.version) if v > relist.version)


async def test_a_handle_far_behind_another_lists_again(open_store: Opener, limits: Limits) -> None:
    one, two = await open_store(), await open_store()
    await one.delete(Volume, (await one.create(volume("first"))).meta.name)
    watch = one.watch(Volume)
    stop = time.monotonic() + 20
    # Without yielding to the poll for long: `two` writes in big batches, `one` is not read meanwhile.
    for _ in range(0, limits.kept_changes + (2048 if limits.at_once else 0), 256):
        await asyncio.gather(*(two.create(volume(f"v{i}")) for i in range(256)))
        await asyncio.gather(*(two.delete(Volume, f"v{i}") for i in range(256)))
    last = await two.create(volume("last"))
    last = await one.update(last)
    await becomes(lambda: one.list(Volume), [last], limits)
    names = []
    while not names or names[-1] != "last":
        assert time.monotonic() < stop
        event = (await take(watch, 1))[0]
        if event.type is EventType.RELIST:
            names = [v.meta.name for v in await one.list(Volume)]
        elif event.resource is not None:
            names.append(event.resource.meta.name)
    assert await one.update(last)


async def test_an_abandoned_watch_is_forgotten(store: Store) -> None:
    async def one_event() -> None:
        async for _ in store.watch(Volume):
            return

    reader = asyncio.ensure_future(one_event())
    await asyncio.sleep(0)
    await store.create(volume("a"))
    await asyncio.wait_for(reader, 5)
    abandoned = asyncio.ensure_future(one_event())
    await asyncio.sleep(0)
    abandoned.cancel()
    await asyncio.gather(abandoned, return_exceptions=True)
    await store.create(volume("b"))
