"""Sizes that are not whole clusters, and the codes for "no room now" and "never"."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest

from agent.config.settings import Settings
from agent.csi.client import CallFailed, CsiClient, from_snapshot, from_volume
from agent.daemon.standalone import Standalone

GB, GIB = 10**9, 1 << 30


@pytest.fixture
async def csi(settings: Callable[..., Settings], folder: Path) -> AsyncIterator[CsiClient]:
    given = settings(f"{folder}/d0.img:4GiB:nvme")
    async with Standalone(given) as agent, CsiClient(given.csi_endpoint) as client:
        await agent.wait_ready(30)
        yield client


async def test_what_was_rounded_up_can_be_made_again_from_itself(csi: CsiClient) -> None:
    volume = await csi.create_volume("a", GB)
    snapshot = await csi.create_snapshot("s", volume)
    assert snapshot.size_bytes == GB, "external-provisioner refuses a claim that asks for less than its snapshot says"
    await csi.create_volume("clone", GB, source=from_volume(volume))
    await csi.create_volume("restored", GB, source=from_snapshot(snapshot.snapshot_id))
    with pytest.raises(CallFailed) as refused:
        await csi.create_volume("small", GB - (8 << 20), source=from_volume(volume))
    assert refused.value.code is grpc.StatusCode.OUT_OF_RANGE


async def test_a_snapshot_is_as_large_as_was_asked_for_last(csi: CsiClient) -> None:
    volume = await csi.create_volume("a", GB)
    await csi.expand(volume, 2 * GB)
    assert (await csi.create_snapshot("s", volume)).size_bytes == 2 * GB
    await csi.expand(volume, 2 * GB + 1)  # it is as large already
    assert (await csi.create_snapshot("t", volume)).size_bytes == 2 * GB


async def test_no_room_now_is_another_answer_than_never(csi: CsiClient) -> None:
    thick = {"provisioning": "thick"}
    volume = await csi.create_volume("a", GIB, thick)
    other = await csi.create_volume("b", 2 * GIB, thick)
    with pytest.raises(CallFailed) as now:
        await csi.expand(volume, 2 * GIB)
    assert now.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(CallFailed) as never:
        await csi.expand(volume, 5 * GIB)
    assert never.value.code is grpc.StatusCode.OUT_OF_RANGE
    await csi.delete_volume(other)
    assert (await csi.expand(volume, 2 * GIB)).capacity_bytes == 2 * GIB
