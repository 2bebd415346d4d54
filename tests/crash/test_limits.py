"""What the target refuses for good is answered in words, with the right code, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import socket

import grpc
import pytest

from agent.csi.client import CallFailed
from agent.spdk import app, nvmf
from agent.spdk.client import Client
from tests.contract.waiting import until
from tests.diag.asking import ask, url_of

from .machine import ADDRESS, NODE, Machine, Patient, holdings

MIB = 1 << 20
DEFAULT_SUBSYSTEMS = 1024
"""SPDK's limit unless nvmf_set_max_subsystems is called before it initialises; the discovery subsystem counts."""


async def test_no_subsystem_left(machine: Machine) -> None:
    if machine.kind == "embedded":
        pytest.skip("it serves 65,536 subsystems; tests/standalone/test_subsystem_limit.py has one that serves few")
    machine.start_agent()
    csi = Patient(machine.endpoint)
    try:
        await csi.wait_ready()
        async with Client(machine.target.socket_path, call_timeout_s=60) as rpc:
            await rpc.wait_connected(10)
            await app.wait_init(rpc)
            taken = [f"nqn.2026-11.example:other:{index}" for index in range(DEFAULT_SUBSYSTEMS)]
            results = await asyncio.gather(
                *(nvmf.create_subsystem(rpc, nqn, "S", "M") for nqn in taken), return_exceptions=True
            )
            assert any(results), "the target took more subsystems than its limit"
        with pytest.raises(CallFailed, match="nvmf_set_max_subsystems") as failure:
            await csi.client.create_volume("one too many", 16 * MIB, {"tier": "ssd"})
        assert failure.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert list((await csi.call("list_volumes")).entries) == []
        assert (await holdings(machine.target.socket_path)).lvols == []
    finally:
        await csi.close()


async def test_no_address_to_listen_on(machine: Machine) -> None:
    with socket.socket() as occupant:
        occupant.bind((ADDRESS, machine.port))
        occupant.listen()
        machine.start_agent()
        csi = Patient(machine.endpoint)
        url = await url_of(machine.folder / "agent")

        async def reasons() -> list[tuple[str, str]]:
            return [(each["part"], each["message"]) for each in (await ask(url, "/readyz")).json["reasons"]]

        try:
            (told,) = await until(reasons, lambda seen: [part for part, _ in seen] == ["port"])
            assert f"{ADDRESS}:{machine.port}" in told[1]
            assert "nvmf_port" in told[1]
            assert await csi.call("probe") is False
            assert machine.agent_log().count("so that no host can connect") == 1
            volume = await csi.call("create_volume", "v", 16 * MIB, {"tier": "ssd"})
            with pytest.raises(CallFailed, match="nvmf_port") as failure:
                await csi.client.publish(volume, NODE)
            assert failure.value.code is grpc.StatusCode.FAILED_PRECONDITION
            listed = await csi.call("list_volumes")
            assert [list(entry.status.published_node_ids) for entry in listed.entries] == [[]]
            assert (await holdings(machine.target.socket_path)).exports == {volume: frozenset()}
            occupant.close()
            await csi.wait_ready()
            await csi.call("publish", volume, NODE)
            await csi.call("unpublish", volume, NODE)
            await csi.call("delete_volume", volume)
        finally:
            await csi.close()


async def test_a_repeated_publish_that_is_refused_does_not_shut_the_door(machine: Machine) -> None:
    """The node has the volume mounted: once the target can listen again, its host has to be let in again."""
    machine.start_agent()
    csi = Patient(machine.endpoint)
    try:
        await csi.wait_ready()
        volume = await csi.call("create_volume", "v", 16 * MIB, {"tier": "ssd"})
        await csi.call("publish", volume, NODE)
        open_to = (await holdings(machine.target.socket_path)).exports
        machine.target.kill()
        with socket.socket() as occupant:
            occupant.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            occupant.bind((ADDRESS, machine.port))
            occupant.listen()
            machine.target.start()
            with pytest.raises(CallFailed, match="nvmf_port"):
                await csi.call("publish", volume, NODE)
            listed = await csi.call("list_volumes")
            assert [list(entry.status.published_node_ids) for entry in listed.entries] == [[NODE]]
        await csi.call("publish", volume, NODE)
        assert (await holdings(machine.target.socket_path)).exports == open_to
    finally:
        await csi.close()


async def test_the_port_is_held_as_long_as_an_agent_runs(machine: Machine) -> None:
    machine.start_agent()
    csi = Patient(machine.endpoint)
    try:
        await csi.wait_ready()
        with pytest.raises(OSError, match="in use"), socket.socket() as other:
            other.bind((ADDRESS, machine.port))
        assert machine.stop_agent() == 0
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind((ADDRESS, machine.port))
    finally:
        await csi.close()
