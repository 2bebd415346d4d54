from __future__ import annotations

from typing import Any

import pytest
from grpc import StatusCode

from agent.csi.client import CallFailed, Mode, capability
from agent.csi.pb import csi_pb2 as csi

from .conftest import Driver

MIB = 1 << 20
GIB = 1 << 30


def create_request(**changes: Any) -> csi.CreateVolumeRequest:
    request: dict[str, Any] = {
        "name": "pvc-1",
        "volume_capabilities": [capability()],
        "capacity_range": csi.CapacityRange(required_bytes=64 * MIB),
    }
    return csi.CreateVolumeRequest(**(request | changes))


async def refusal(driver: Driver, method: str, request: Any) -> tuple[StatusCode, str]:
    with pytest.raises(CallFailed) as caught:
        await driver.client.call(method, request)
    return caught.value.code, caught.value.details


async def test_create_is_repeatable_and_a_different_size_is_refused(driver: Driver) -> None:
    exact = csi.CapacityRange(required_bytes=64 * MIB, limit_bytes=64 * MIB)
    first = await driver.client.call("Controller/CreateVolume", create_request(capacity_range=exact))
    again = await driver.client.call("Controller/CreateVolume", create_request(capacity_range=exact))
    assert first == again
    assert first.volume.capacity_bytes == 64 * MIB
    other = create_request(capacity_range=csi.CapacityRange(required_bytes=128 * MIB))
    assert (await refusal(driver, "Controller/CreateVolume", other))[0] is StatusCode.ALREADY_EXISTS
    assert len((await driver.client.list_volumes()).entries) == 1


@pytest.mark.parametrize(
    "name", ["a", "x" * 128, "../../etc/passwd", "a/b.c", "ünï-☃", "…" * 42, " ", "two\nlines\tand a tab", "%s{0}"]
)
async def test_names_are_mapped_never_copied(driver: Driver, name: str) -> None:
    volume_id = await driver.client.create_volume(name, GIB)
    assert volume_id.startswith("vol-") and len(volume_id) == 36
    assert await driver.client.create_volume(name, GIB) == volume_id


@pytest.mark.parametrize(
    "name", ["", "x" * 129, "é" * 65, "x" * 10_000, "a\0b", "a\x1b[2Jb", "bell\x07", "\x7f", "\x85"]
)
async def test_bad_names(driver: Driver, name: str) -> None:
    code, details = await refusal(driver, "Controller/CreateVolume", create_request(name=name))
    assert (code, details.partition(":")[0]) == (StatusCode.INVALID_ARGUMENT, "name")
    assert len(details) < 200


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({}, GIB),
        ({"limit_bytes": 4 * GIB}, GIB),
        ({"limit_bytes": 10 * MIB}, 10 * MIB),
        ({"limit_bytes": 10 * MIB + 5}, 10 * MIB),
        ({"required_bytes": 1}, MIB),
        ({"required_bytes": 10 * MIB, "limit_bytes": 10 * MIB}, 10 * MIB),
        ({"required_bytes": 10 * MIB + 1}, 11 * MIB),
    ],
)
async def test_sizes(driver: Driver, sizes: dict[str, int], expected: int) -> None:
    request = create_request(capacity_range=csi.CapacityRange(**sizes))
    response = await driver.client.call("Controller/CreateVolume", request)
    assert response.volume.capacity_bytes == expected


@pytest.mark.parametrize(
    ("sizes", "code"),
    [
        ({"required_bytes": -1}, StatusCode.INVALID_ARGUMENT),
        ({"limit_bytes": -1}, StatusCode.INVALID_ARGUMENT),
        ({"required_bytes": -(2**63)}, StatusCode.INVALID_ARGUMENT),
        ({"required_bytes": 2 * GIB, "limit_bytes": GIB}, StatusCode.INVALID_ARGUMENT),
        ({"required_bytes": 2**63 - 1}, StatusCode.OUT_OF_RANGE),
        ({"required_bytes": 2**60 + 1}, StatusCode.OUT_OF_RANGE),
        ({"required_bytes": 2**60}, StatusCode.RESOURCE_EXHAUSTED),
        ({"required_bytes": 5, "limit_bytes": 5}, StatusCode.OUT_OF_RANGE),
    ],
)
async def test_impossible_sizes(driver: Driver, sizes: dict[str, int], code: StatusCode) -> None:
    request = create_request(capacity_range=csi.CapacityRange(**sizes))
    assert (await refusal(driver, "Controller/CreateVolume", request))[0] is code
    assert not (await driver.client.list_volumes()).entries


@pytest.mark.parametrize(
    ("parameters", "mentioned"),
    [
        ({"tier": "tape"}, ["tier", "tape", "nvme, ssd, hdd"]),
        ({"tier": ""}, ["tier", "nvme, ssd, hdd"]),
        ({"provisioning": "fat"}, ["provisioning", "thin, thick"]),
        ({"replicas": "3"}, ["replicas", '"1"']),
        ({"replicas": "one"}, ["replicas", '"1"']),
        ({"frontend": "iscsi"}, ["frontend", "nvme-tcp, ublk, loop"]),
        ({"Tier": "nvme"}, ["Tier", "unknown", "tier, provisioning"]),
        ({"csi.storage.k8s.io/fstype": "ntfs"}, ["fstype", "ext4, xfs, btrfs"]),
        ({"csi.storage.k8s.io/else": "1"}, ["csi.storage.k8s.io/else", "unknown"]),
        ({"x" * 10_000: "1"}, ["unknown"]),
    ],
)
async def test_bad_parameters_are_named_with_what_is_accepted(
    driver: Driver, parameters: dict[str, str], mentioned: list[str]
) -> None:
    code, details = await refusal(driver, "Controller/CreateVolume", create_request(parameters=parameters))
    assert code is StatusCode.INVALID_ARGUMENT
    assert all(word in details for word in mentioned), details
    assert len(details) < 400


@pytest.mark.parametrize(
    ("in_capability", "in_parameters", "size_mib", "refused"),
    [
        ("xfs", "", 299, True),
        ("xfs", "", 300, False),
        ("", "btrfs", 108, True),
        ("", "btrfs", 109, False),
        ("ext4", "xfs", 16, False),
        ("", "", 16, False),
    ],
)
async def test_too_small_for_the_filesystem(
    driver: Driver, in_capability: str, in_parameters: str, size_mib: int, refused: bool
) -> None:
    request = create_request(
        capacity_range=csi.CapacityRange(required_bytes=size_mib << 20),
        parameters={"csi.storage.k8s.io/fstype": in_parameters},
        volume_capabilities=[capability(fs_type=in_capability)],
    )
    if not refused:
        await driver.client.call("Controller/CreateVolume", request)
        return
    code, details = await refusal(driver, "Controller/CreateVolume", request)
    assert code is StatusCode.OUT_OF_RANGE
    assert f"{in_capability or in_parameters}, which needs" in details


async def test_all_parameters_are_accepted_and_claim_metadata_is_ignored(driver: Driver) -> None:
    wanted = {"tier": "hdd", "provisioning": "thick", "replicas": "1", "frontend": "loop"}
    wanted |= {"csi.storage.k8s.io/fstype": "xfs"}
    metadata = {f"csi.storage.k8s.io/{key}": "x" for key in ("pvc/name", "pvc/namespace", "pv/name")}
    volume_id = await driver.client.create_volume("pvc-1", GIB, wanted | metadata)
    assert await driver.client.create_volume("pvc-1", GIB, wanted) == volume_id
    spec = (await driver.volumes.get(volume_id)).spec
    assert (spec.tier, spec.provisioning, spec.frontend) == ("hdd", "thick", "loop")
    assert spec.parameters == tuple(sorted(wanted.items()))
    code, _ = await refusal(driver, "Controller/CreateVolume", create_request(parameters={"tier": "ssd"}))
    assert code is StatusCode.ALREADY_EXISTS


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"volume_capabilities": []}, "volume_capabilities"),
        ({"volume_capabilities": [csi.VolumeCapability()]}, "volume_capabilities[0].access_type"),
        ({"volume_capabilities": [capability(mode=Mode.UNKNOWN)]}, "volume_capabilities[0].access_mode"),
        ({"volume_capabilities": [capability(mode=99)]}, "volume_capabilities[0].access_mode"),
        (
            {"volume_capabilities": [capability(), capability(block=True, mode=Mode.MULTI_NODE_MULTI_WRITER)]},
            "volume_capabilities[1].access_mode",
        ),
        ({"volume_capabilities": [capability(mode=Mode.MULTI_NODE_SINGLE_WRITER)]}, "volume_capabilities[0]"),
        ({"volume_capabilities": [capability(fs_type="ntfs")]}, "volume_capabilities[0].mount.fs_type"),
        ({"volume_capabilities": [capability(mount_flags=["a\0b"])]}, "volume_capabilities[0].mount.mount_flags"),
        ({"volume_capabilities": [capability(mount_flags=["x" * 5000])]}, "volume_capabilities[0].mount.mount_flags"),
        ({"volume_content_source": csi.VolumeContentSource()}, "volume_content_source"),
        ({"mutable_parameters": {"iops": "1"}}, "mutable_parameters"),
    ],
)
async def test_unsupported_wishes(driver: Driver, changes: dict[str, Any], field: str) -> None:
    code, details = await refusal(driver, "Controller/CreateVolume", create_request(**changes))
    assert code is StatusCode.INVALID_ARGUMENT
    assert details.startswith(field)


@pytest.mark.parametrize(
    "mode",
    [
        Mode.SINGLE_NODE_WRITER,
        Mode.SINGLE_NODE_READER_ONLY,
        Mode.SINGLE_NODE_SINGLE_WRITER,
        Mode.SINGLE_NODE_MULTI_WRITER,
        Mode.MULTI_NODE_READER_ONLY,
    ],
)
async def test_access_modes(driver: Driver, mode: Mode.Mode) -> None:
    volume_id = await driver.client.create_volume("pvc-1", GIB)
    await driver.client.publish(volume_id, "node-a", mode=mode)
    attachment = (await driver.volumes.get(volume_id)).spec.attachments[0]
    assert attachment.readonly is (mode in (Mode.SINGLE_NODE_READER_ONLY, Mode.MULTI_NODE_READER_ONLY))
    answer = await driver.client.validate(volume_id, [capability(mode=mode)])
    assert len(answer.confirmed.volume_capabilities) == 1


async def test_a_volume_others_can_reach_is_bound_to_no_node(driver: Driver) -> None:
    driver.volumes.address = "192.0.2.7"
    reachable = await driver.client.call("Controller/CreateVolume", create_request())
    assert not reachable.volume.accessible_topology
    request = create_request(name="b", parameters={"frontend": "loop"})
    local = await driver.client.call("Controller/CreateVolume", request)
    assert len(local.volume.accessible_topology) == 1


async def test_publish_tells_the_node_where_to_go(driver: Driver) -> None:
    volume_id = await driver.client.create_volume("pvc-1", GIB)
    context = await driver.client.publish(volume_id, "node-a")
    assert context == {
        "frontend": "nvme-tcp",
        "nqn": f"nqn.2026-11.storage.quarry:vol:{volume_id}",
        "address": "127.0.0.1",
        "port": "4420",
        "uuid": f"uuid-of-{volume_id}",
        "hostNqn": "nqn.host:node-a",
    }
    assert await driver.client.publish(volume_id, "node-a") == context
    with pytest.raises(CallFailed) as other_way:
        await driver.client.publish(volume_id, "node-a", readonly=True)
    assert other_way.value.code is StatusCode.ALREADY_EXISTS
    listed = (await driver.client.list_volumes()).entries[0]
    assert list(listed.status.published_node_ids) == ["node-a"]
    with pytest.raises(CallFailed) as in_use:
        await driver.client.delete_volume(volume_id)
    assert in_use.value.code is StatusCode.FAILED_PRECONDITION
    await driver.client.unpublish(volume_id)
    await driver.client.unpublish(volume_id, "node-a")
    await driver.client.delete_volume(volume_id)
    await driver.client.delete_volume(volume_id)


@pytest.mark.parametrize(
    ("method", "request_", "code"),
    [
        ("DeleteVolume", csi.DeleteVolumeRequest(), StatusCode.INVALID_ARGUMENT),
        ("ControllerPublishVolume", csi.ControllerPublishVolumeRequest(), StatusCode.INVALID_ARGUMENT),
        ("ControllerPublishVolume", csi.ControllerPublishVolumeRequest(volume_id="v"), StatusCode.INVALID_ARGUMENT),
        (
            "ControllerPublishVolume",
            csi.ControllerPublishVolumeRequest(volume_id="v", node_id="n"),
            StatusCode.INVALID_ARGUMENT,
        ),
        (
            "ControllerPublishVolume",
            csi.ControllerPublishVolumeRequest(volume_id="v", node_id="n", volume_capability=capability()),
            StatusCode.NOT_FOUND,
        ),
        ("ControllerUnpublishVolume", csi.ControllerUnpublishVolumeRequest(), StatusCode.INVALID_ARGUMENT),
        ("ValidateVolumeCapabilities", csi.ValidateVolumeCapabilitiesRequest(), StatusCode.INVALID_ARGUMENT),
        (
            "ValidateVolumeCapabilities",
            csi.ValidateVolumeCapabilitiesRequest(volume_id="v"),
            StatusCode.INVALID_ARGUMENT,
        ),
        (
            "ValidateVolumeCapabilities",
            csi.ValidateVolumeCapabilitiesRequest(volume_id="v", volume_capabilities=[capability()]),
            StatusCode.NOT_FOUND,
        ),
        ("ControllerExpandVolume", csi.ControllerExpandVolumeRequest(), StatusCode.INVALID_ARGUMENT),
        ("ControllerExpandVolume", csi.ControllerExpandVolumeRequest(volume_id="v"), StatusCode.INVALID_ARGUMENT),
        (
            "ControllerExpandVolume",
            csi.ControllerExpandVolumeRequest(volume_id="v" * 9000, capacity_range=csi.CapacityRange(required_bytes=1)),
            StatusCode.NOT_FOUND,
        ),
        ("ListVolumes", csi.ListVolumesRequest(max_entries=-1), StatusCode.INVALID_ARGUMENT),
        ("ListVolumes", csi.ListVolumesRequest(starting_token="invalid"), StatusCode.ABORTED),
        ("GetCapacity", csi.GetCapacityRequest(parameters={"x": "1"}), StatusCode.INVALID_ARGUMENT),
        ("CreateSnapshot", csi.CreateSnapshotRequest(), StatusCode.INVALID_ARGUMENT),
        ("CreateSnapshot", csi.CreateSnapshotRequest(name="s"), StatusCode.INVALID_ARGUMENT),
        ("CreateSnapshot", csi.CreateSnapshotRequest(source_volume_id="v"), StatusCode.INVALID_ARGUMENT),
        ("CreateSnapshot", csi.CreateSnapshotRequest(name="s", source_volume_id="v"), StatusCode.NOT_FOUND),
        (
            "CreateSnapshot",
            csi.CreateSnapshotRequest(name="s", source_volume_id="v", parameters={"x": "1"}),
            StatusCode.INVALID_ARGUMENT,
        ),
        ("DeleteSnapshot", csi.DeleteSnapshotRequest(), StatusCode.INVALID_ARGUMENT),
        ("GetSnapshot", csi.GetSnapshotRequest(), StatusCode.INVALID_ARGUMENT),
        ("GetSnapshot", csi.GetSnapshotRequest(snapshot_id="s"), StatusCode.NOT_FOUND),
        ("ListSnapshots", csi.ListSnapshotsRequest(max_entries=-1), StatusCode.INVALID_ARGUMENT),
        ("ListSnapshots", csi.ListSnapshotsRequest(starting_token="invalid"), StatusCode.ABORTED),
    ],
)
async def test_what_is_missing_is_found_before_what_does_not_exist(
    driver: Driver, method: str, request_: Any, code: StatusCode
) -> None:
    assert (await refusal(driver, f"Controller/{method}", request_))[0] is code


async def test_unsupported_capabilities_are_not_confirmed(driver: Driver) -> None:
    volume_id = await driver.client.create_volume("pvc-1", GIB, {"tier": "ssd"})
    answer = await driver.client.validate(volume_id, [capability(mode=Mode.MULTI_NODE_MULTI_WRITER)])
    assert not answer.HasField("confirmed")
    assert "MULTI_NODE_MULTI_WRITER" in answer.message
    request = csi.ValidateVolumeCapabilitiesRequest(
        volume_id=volume_id, volume_capabilities=[capability()], parameters={"tier": "hdd"}
    )
    assert not (await driver.client.call("Controller/ValidateVolumeCapabilities", request)).HasField("confirmed")
    request.parameters["tier"] = "ssd"
    assert (await driver.client.call("Controller/ValidateVolumeCapabilities", request)).HasField("confirmed")


async def test_pages_of_volumes(driver: Driver) -> None:
    ids = sorted([await driver.client.create_volume(f"pvc-{number}", GIB) for number in range(5)])
    first = await driver.client.list_volumes(max_entries=2)
    assert [entry.volume.volume_id for entry in first.entries] == ids[:2]
    await driver.client.delete_volume(ids[0])
    rest = await driver.client.list_volumes(token=first.next_token)
    assert [entry.volume.volume_id for entry in rest.entries] == ids[2:]
    assert rest.next_token == ""
    assert (await driver.client.list_volumes(max_entries=4)).next_token == ""


async def test_expand(driver: Driver) -> None:
    volume_id = await driver.client.create_volume("pvc-1", GIB)
    grown = await driver.client.expand(volume_id, 2 * GIB)
    assert (grown.capacity_bytes, grown.node_expansion_required) == (2 * GIB, True)
    assert (await driver.client.expand(volume_id, GIB)).capacity_bytes == 2 * GIB
    raw = csi.ControllerExpandVolumeRequest(
        volume_id=volume_id,
        capacity_range=csi.CapacityRange(required_bytes=3 * GIB, limit_bytes=3 * GIB),
        volume_capability=capability(block=True),
    )
    answer = await driver.client.call("Controller/ControllerExpandVolume", raw)
    assert (answer.capacity_bytes, answer.node_expansion_required) == (3 * GIB, False)
