"""Volumes that several nodes have at once, and nodes that may have so many volumes only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from agent.csi.client import CallFailed, CsiClient, Mode, capability
from agent.csi.pb import csi_pb2 as csi
from agent.model import Meta, StorageNode, StorageNodeStatus
from agent.nvmf import initiator
from agent.store.local import open_local
from tests.crash.machine import NODE, Machine, Patient

from .test_limits import until

MIB = 1 << 20
SIZE = 64 * MIB
OTHER = "node-b"
OTHER_NQN = "nqn.2014-08.org.nvmexpress:uuid:bbbbbbbb-0000-4000-8000-00000000000b"
REFUSED = grpc.StatusCode.FAILED_PRECONDITION
FULL = grpc.StatusCode.RESOURCE_EXHAUSTED


@asynccontextmanager
async def running(machine: Machine, config: str = "") -> AsyncIterator[Patient]:
    machine.start_agent(config)
    client = Patient(machine.endpoint)
    try:
        await client.wait_ready()
        yield client
    finally:
        await client.close()


async def add_node(machine: Machine) -> None:
    """Let the agent know another machine, as that one's own agent would."""
    store = await open_local(machine.folder / "agent" / "quarry.db")
    await store.create(StorageNode(Meta(OTHER), status=StorageNodeStatus(host_nqn=OTHER_NQN)))
    await store.close()


@asynccontextmanager
async def connected(context: dict[str, str]) -> AsyncIterator[initiator.Controller]:
    host = await initiator.connect(context["address"], int(context["port"]), context["nqn"], context["hostNqn"])
    try:
        yield host
    finally:
        await host.close()


async def refusal(client: CsiClient, volume: str, node: str, **how: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(CallFailed) as caught:
        await client.publish(volume, node, block=True, **how)  # type: ignore[arg-type]
    return caught.value.code, caught.value.details


async def test_two_nodes_write(machine: Machine) -> None:
    async with running(machine) as client:
        await add_node(machine)
        volume = await client.call("create_volume", "shared", SIZE, {"tier": "ssd"}, block=True)
        how = {"block": True, "mode": Mode.MULTI_NODE_MULTI_WRITER}
        here, there = [await client.call("publish", volume, node, **how) for node in (NODE, OTHER)]
        assert here["hostNqn"] != there["hostNqn"] == OTHER_NQN
        async with connected(here) as one, connected(there) as other:
            await one.write(1, 0, b"1" * 4096)
            await other.write(1, 4096, b"2" * 4096)
            assert await other.read(1, 0, 8192) == await one.read(1, 0, 8192) == b"1" * 4096 + b"2" * 4096
            with pytest.raises(CallFailed) as in_use:
                await client.call("delete_volume", volume)
            assert in_use.value.code is REFUSED
            await client.call("unpublish", volume, NODE)

            async def cut() -> bool:
                return not one.connected

            await until(cut)
            assert await other.read(1, 0, 4096) == b"1" * 4096
        listed = (await client.call("get_volume", volume)).status.published_node_ids
        assert list(listed) == [OTHER]
        await client.call("unpublish", volume)
        await client.call("delete_volume", volume)


@pytest.mark.parametrize("machine", ["embedded"], indirect=True)
async def test_who_may_have_it_beside_whom(machine: Machine) -> None:
    async with running(machine) as patient:
        client = patient.client
        await add_node(machine)
        volume = await client.create_volume("v", SIZE, {"tier": "ssd"}, block=True)
        single = (Mode.SINGLE_NODE_WRITER, Mode.SINGLE_NODE_SINGLE_WRITER, Mode.SINGLE_NODE_MULTI_WRITER)
        shared = (Mode.MULTI_NODE_MULTI_WRITER, Mode.MULTI_NODE_SINGLE_WRITER, Mode.MULTI_NODE_READER_ONLY)
        for mode in (*single, *shared):
            await client.publish(volume, NODE, block=True, mode=mode)
            for other in {*single, *shared} - ({mode} if mode in shared else set()):
                code, details = await refusal(client, volume, OTHER, mode=other, readonly=True)
                assert (code, "published to node-a as" in details) == (REFUSED, True), details
            await client.unpublish(volume)

        readers = Mode.MULTI_NODE_READER_ONLY
        for node in (NODE, OTHER, NODE):
            await client.publish(volume, node, block=True, mode=readers)
        await client.unpublish(volume)

        one_writer = Mode.MULTI_NODE_SINGLE_WRITER
        await client.publish(volume, NODE, block=True, mode=one_writer)
        code, details = await refusal(client, volume, OTHER, mode=one_writer)
        assert (code, "its one writer, node-a" in details) == (REFUSED, True)
        await client.publish(volume, OTHER, block=True, mode=one_writer, readonly=True)
        await client.unpublish(volume, NODE)
        await client.publish(volume, NODE, block=True, mode=one_writer)


@pytest.mark.parametrize("machine", ["embedded"], indirect=True)
async def test_no_filesystem_on_what_others_may_write_to(machine: Machine) -> None:
    async with running(machine) as patient:
        client = patient.client
        volume = await client.create_volume("v", SIZE, {"tier": "ssd"}, block=True)
        await client.publish(volume, NODE, block=True, mode=Mode.MULTI_NODE_MULTI_WRITER)
        staging = str(machine.folder / "agent" / "csi" / "staging")
        for mode, code in ((Mode.SINGLE_NODE_WRITER, REFUSED), (Mode.MULTI_NODE_MULTI_WRITER, None)):
            request = csi.NodeStageVolumeRequest(
                volume_id=volume, staging_target_path=staging, volume_capability=capability(mode=mode)
            )
            with pytest.raises(CallFailed) as refused:
                await client.call("Node/NodeStageVolume", request)
            assert refused.value.code is (code or grpc.StatusCode.INVALID_ARGUMENT)
            assert "raw block" in refused.value.details


async def test_no_more_volumes_than_a_node_may_have(machine: Machine) -> None:
    limit = "max_volumes_per_node: 3"
    async with running(machine, limit) as patient:
        client = patient.client
        assert (await client.node_info()).max_volumes_per_node == 3
        volumes = [await client.create_volume(f"v{number}", SIZE, {"tier": "ssd"}) for number in range(8)]
        answers = await asyncio.gather(*(client.publish(each, NODE) for each in volumes), return_exceptions=True)
        refused = [each for each in answers if isinstance(each, CallFailed)]
        assert [each.code for each in refused] == [FULL] * 5
        assert all("max_volumes_per_node" in each.details for each in refused)
        there = [each for each, answer in zip(volumes, answers, strict=True) if not isinstance(answer, CallFailed)]
        missing = [each for each in volumes if each not in there]
        for _ in range(2):
            await client.publish(there[0], NODE)
        with pytest.raises(CallFailed) as other_way:
            await client.publish(there[0], NODE, readonly=True)
        assert other_way.value.code is grpc.StatusCode.ALREADY_EXISTS
        machine.kill_agent()
    async with running(machine, limit) as patient:
        client = patient.client
        assert (await refusal(client, missing[0], NODE))[0] is FULL
        for _ in range(2):
            await client.unpublish(there[0], NODE)
        await client.publish(missing[0], NODE)
        assert (await refusal(client, missing[1], NODE))[0] is FULL
        await client.unpublish(there[1])
        await client.delete_volume(there[1])
        await client.publish(missing[1], NODE)
        assert (await refusal(client, missing[2], NODE))[0] is FULL
        await add_node(machine)
        await client.publish(missing[2], OTHER)
