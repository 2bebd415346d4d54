"""Bad requests against the whole agent: right code, words that name the field, nothing changed on the target."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message
from grpc import StatusCode

from agent.csi.client import CallFailed, capability
from agent.csi.pb import csi_pb2 as csi

from .conftest import NODE, Machine

MIB = 1 << 20
GIB = 1 << 30
UNKNOWN = ["vol-" + "0" * 32, "fake-vol-id-1234", "../../etc/passwd", "x" * 10_000, "ünïcödé", "a/b.c"]


def create(name: str = "v", **size: int) -> Message:
    return csi.CreateVolumeRequest(
        name=name, capacity_range=csi.CapacityRange(**size), volume_capabilities=[capability()]
    )


async def refusal(machine: Machine, method: str, request: Message) -> tuple[StatusCode, str]:
    with pytest.raises(CallFailed) as failure:
        await machine.client.call(method, request)
    return failure.value.code, failure.value.details


async def inventory(machine: Machine) -> tuple[Any, ...]:
    """What could have changed: volumes, and everything on the target."""
    rpc = machine.agent.rpc
    bdevs = sorted(each["name"] for each in await rpc.call("bdev_get_bdevs"))
    subsystems = sorted(each["nqn"] for each in await rpc.call("nvmf_get_subsystems"))
    volumes = [entry.volume.volume_id for entry in (await machine.client.list_volumes()).entries]
    return bdevs, subsystems, volumes, await machine.client.capacity()


async def test_sizes_and_names_that_cannot_be(any_machine: Machine) -> None:
    before = await inventory(any_machine)
    refused = {
        StatusCode.INVALID_ARGUMENT: [
            create(required_bytes=-1),
            create(limit_bytes=-1),
            create(required_bytes=2 * GIB, limit_bytes=GIB),
            create(""),
            create("x" * 10_000, required_bytes=MIB),
            create("a\0b", required_bytes=MIB),
        ],
        StatusCode.OUT_OF_RANGE: [
            create(required_bytes=5, limit_bytes=5),
            create(required_bytes=2**63 - 1),
            create(required_bytes=2**62),
            create(required_bytes=100 * GIB),
        ],
    }
    for code, requests in refused.items():
        for request in requests:
            answer, words = await refusal(any_machine, "Controller/CreateVolume", request)
            assert answer is code, f"{request}: {answer} {words}"
            assert "bytes" in words or "name" in words, words
            assert len(words) < 500
    assert await inventory(any_machine) == before


@pytest.mark.parametrize("name", ["a/b", "../up", "...", "ünïcödé ☃", "spaces and 'quotes'", "x" * 128])
async def test_odd_names_are_mapped(machine: Machine, name: str) -> None:
    volume = await machine.client.create_volume(name, 16 * MIB)
    assert await machine.client.create_volume(name, 16 * MIB) == volume
    await machine.client.delete_volume(volume)


async def test_zero_is_the_default_size(machine: Machine) -> None:
    response = await machine.client.call("Controller/CreateVolume", create())
    assert response.volume.capacity_bytes == GIB


async def test_unknown_volumes(any_machine: Machine) -> None:
    before = await inventory(any_machine)
    folder = any_machine.settings.mount_roots[0]
    for volume in UNKNOWN:
        await any_machine.client.delete_volume(volume)
        await any_machine.client.unpublish(volume, NODE)
        absent: list[tuple[str, Message]] = [
            (
                "Controller/ControllerPublishVolume",
                csi.ControllerPublishVolumeRequest(volume_id=volume, node_id=NODE, volume_capability=capability()),
            ),
            (
                "Controller/ControllerExpandVolume",
                csi.ControllerExpandVolumeRequest(
                    volume_id=volume, capacity_range=csi.CapacityRange(required_bytes=MIB)
                ),
            ),
            (
                "Controller/ValidateVolumeCapabilities",
                csi.ValidateVolumeCapabilitiesRequest(volume_id=volume, volume_capabilities=[capability()]),
            ),
            (
                "Node/NodeStageVolume",
                csi.NodeStageVolumeRequest(
                    volume_id=volume, staging_target_path=str(folder / "s"), volume_capability=capability()
                ),
            ),
            ("Node/NodeGetVolumeStats", csi.NodeGetVolumeStatsRequest(volume_id=volume, volume_path=str(folder))),
            ("Node/NodeExpandVolume", csi.NodeExpandVolumeRequest(volume_id=volume, volume_path=str(folder))),
        ]
        for method, request in absent:
            code, words = await refusal(any_machine, method, request)
            assert code is StatusCode.NOT_FOUND, f"{method}: {code} {words}"
            assert len(words) < 500
    assert await inventory(any_machine) == before


async def test_an_unknown_node_is_not_found_and_nothing_opens(any_machine: Machine) -> None:
    volume = await any_machine.client.create_volume("v", 16 * MIB)
    before = await inventory(any_machine)
    with pytest.raises(CallFailed, match="node") as failure:
        await any_machine.client.publish(volume, "no-such-node")
    assert failure.value.code is StatusCode.NOT_FOUND
    assert await inventory(any_machine) == before
