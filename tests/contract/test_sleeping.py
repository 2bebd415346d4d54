"""What a target is, told by itself: the embedded one, spdk_tgt that polls, nvmf_tgt that sleeps. And that it sleeps."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest

from agent.csi.client import CallFailed
from agent.diag import activity
from agent.errors import RpcError
from agent.spdk import bdev, lvol, nature
from agent.spdk.client import Client
from agent.spdk.nature import Mode, Nature, Program
from tests.crash.machine import NODE, Machine, Patient
from tests.diag.asking import ask, scrape, url_of
from tests.diag.test_commands import said

from .conftest import BLOCK
from .targets import Target, find_nvmf_tgt

MIB = 1 << 20

needs_nvmf_tgt = pytest.mark.skipif(find_nvmf_tgt() is None, reason="no nvmf_tgt (NVMF_TGT, beside SPDK_TGT, or PATH)")


async def test_a_target_tells_what_it_is(rpc: Client, kind: str) -> None:
    found = await nature.learn(rpc)
    if kind == "embedded":
        assert (found.program, found.mode, found.has_ublk) == (Program.EMBEDDED, Mode.INTERRUPT, False)
    else:
        assert (found.program, found.mode, found.has_ublk) == (Program.SPDK_TGT, Mode.POLLING, True)
    seen = await activity.watch(rpc, 0.2)
    assert seen.cpus == 1
    assert seen.cores is not None
    assert seen.busy is not None
    assert 0 <= seen.busy <= 1
    assert activity.explained(found, seen) == ""
    assert activity.described(found, seen)


@pytest.fixture
def sleeper() -> Iterator[Target]:
    target = Target("sleeping")
    try:
        target.start()
        yield target
    finally:
        target.close()


@needs_nvmf_tgt
async def test_nvmf_tgt_sleeps_unless_a_disk_is_polled(sleeper: Target) -> None:
    async with Client(sleeper.socket_path) as rpc:
        await rpc.wait_connected(30)
        found = await nature.learn(rpc)
        assert (found.program, found.mode, found.has_ublk) == (Program.NVMF_TGT, Mode.INTERRUPT, False)
        assert not found.wakes_for_nothing
        await bdev.aio_create(rpc, "aio", str(sleeper.disk("aio.img", 64 * MIB)), BLOCK)
        await lvol.create_lvstore(rpc, "aio", "pool-aio", cluster_bytes=MIB, md_ratio=300)
        seen = await activity.watch(rpc, 0.5)
        assert seen.awake == ()
        try:
            await bdev.uring_create(rpc, "uring", str(sleeper.disk("uring.img", 64 * MIB)), BLOCK)
        except RpcError as error:
            pytest.skip(f"no io_uring here: {error}")
        await lvol.create_lvstore(rpc, "uring", "pool-uring", cluster_bytes=MIB, md_ratio=300)  # polled from here on
        seen = await activity.watch(rpc, 0.5)
        assert seen.awake == ("bdev_uring_group_poll",)
        assert "io_uring" in activity.explained(found, seen)


def polling(target: Nature) -> Nature:
    return Nature(target.version, target.program, Mode.POLLING, target.has_ublk)


def test_what_keeps_a_target_awake_is_named() -> None:
    sleeping = Nature("SPDK v26.05", Program.NVMF_TGT, Mode.INTERRUPT, False)
    iscsi = Nature("SPDK v26.05", Program.SPDK_TGT, Mode.INTERRUPT, True)
    quiet = activity.Activity(cpus=1, cores=0.01, busy=0.01, hosts=1, io_per_s=0, calls_per_s=1)
    used = activity.Activity(cpus=1, cores=0.4, busy=0.4, hosts=1, io_per_s=5000, calls_per_s=1)
    polled = activity.Activity(1, 0.9, 0.9, 0, 0, 0, ("bdev_uring_group_poll",))
    assert activity.explained(sleeping, quiet) == ""
    assert "5000 operations a second of hosts" in activity.explained(sleeping, used)
    assert "AIO" in activity.explained(sleeping, polled)
    assert "nvmf_tgt" in activity.explained(iscsi, polled)
    assert activity.explained(polling(sleeping), polled) == ""
    assert "burnt in waiting 10.0% of 1 CPU" in activity.described(polling(sleeping), polled)
    unseen = activity.Activity(cpus=2, cores=None, busy=None, hosts=0, io_per_s=0, calls_per_s=0)
    assert "not visible" in activity.described(sleeping, unseen)


@pytest.fixture(params=["embedded", pytest.param("sleeping", marks=needs_nvmf_tgt)])
async def machine(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Machine, Patient, str]]:
    made = Machine(request.param)
    csi = Patient(made.endpoint)
    try:
        made.target.start()
        made.start_agent()
        url = await url_of(made.folder / "agent")
        await csi.wait_ready()
        yield made, csi, url
    finally:
        await csi.close()
        made.close()


async def test_an_agent_offers_what_its_target_can(machine: tuple[Machine, Patient, str]) -> None:
    """No ublk is promised where none can be had; the mode is told by every witness."""
    made, csi, url = machine
    sleeping = made.kind == "sleeping"
    shown = (await ask(url, f"/v1/nodes/{NODE}")).json
    frontends = ["nvme-tcp"] if sleeping else ["nvme-tcp", "loop"]
    assert (shown["status"]["frontends"], shown["status"]["target_mode"]) == (frontends, "interrupt")
    assert shown["now"]["target_program"] == ("nvmf_tgt" if sleeping else "embedded target")
    assert shown["now"]["activity"]["cpus"] == 1
    at = ("--state-dir", str(made.folder / "agent"))
    assert "sleeps while there is nothing to do" in await said("nodes", "show", NODE, *at)
    assert "interrupt" in await said("nodes", "list", *at)
    doctor = json.loads((await _doctor(made)) or "{}")
    assert any(each["check"] == "target's load" and "interrupt mode" in each["found"] for each in doctor["checks"])
    (info,) = (await scrape(url)).all("quarry_target_info")
    assert dict(info)["mode"] == "interrupt"
    with pytest.raises(CallFailed) as refused:
        await csi.client.create_volume("pvc-ublk", 64 * MIB, {"tier": "ssd", "frontend": "ublk"})
    assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "offers the frontend ublk" in str(refused.value)
    volume = await csi.call("create_volume", "pvc-1", 64 * MIB, {"tier": "ssd"})
    await csi.call("publish", volume, NODE)


async def _doctor(made: Machine) -> str:
    import asyncio

    from tests.diag.test_commands import quarry

    at = ("--state-dir", str(made.folder / "agent"), "--spdk-socket", str(made.target.socket_path))
    return (await asyncio.to_thread(quarry, "doctor", "-o", "json", *at)).stdout
