from __future__ import annotations

from typing import Any

import pytest
from grpc import StatusCode

from agent.csi.client import CallFailed, Mode, capability
from agent.csi.pb import csi_pb2 as csi
from agent.model import ConnectOptions, Qos

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
        ({"readIops": "1000"}, ["readIops", "reads and writes together", "use iops", "accepted: tier"]),
        ({"iops": "1500"}, ["iops", "1500", "use 1000 or 2000"]),
        ({"iops": "500"}, ["iops", "500", "use 1000", "0 for no limit"]),
        ({"iops": "-1000"}, ["iops", "-1000", "0 for no limit"]),
        ({"iops": "1k"}, ["iops", "1k", "0 for no limit"]),
        ({"iops": ""}, ["iops", "''"]),
        ({"iops": "٣٠٠٠"}, ["iops", "is not a limit"]),
        ({"iops": "1000000001000"}, ["iops", "1000000000"]),
        ({"iops": "9" * 5000}, ["iops"]),
        ({"bandwidth": "100M"}, ["bandwidth", "100000000 bytes a second", "use 95Mi or 96Mi"]),
        ({"bandwidth": "1"}, ["bandwidth", "use 1Mi", "0 for no limit"]),
        ({"bandwidth": "fast"}, ["bandwidth", "fast", "100Mi", "bytes a second"]),
        ({"readBandwidth": "100MiB"}, ["readBandwidth", "100MiB", "100Mi"]),
        ({"writeBandwidth": "2Ti"}, ["writeBandwidth", "2Ti", "1024Gi"]),
        ({"writeBandwidth": "1.3"}, ["writeBandwidth", "whole number of bytes"]),
        ({"mkfsOptions": "-m 0 -L 'x"}, ["mkfsOptions", "no closing quotation"]),
        ({"mkfsOptions": "-F -F"}, ["mkfsOptions", "'-F'", "for ext4", "-b"]),
        ({"mkfsOptions": "-E offset=4096"}, ["mkfsOptions", "offset", "not allowed for ext4"]),
        ({"mkfsOptions": "-m"}, ["mkfsOptions", "-m has no value"]),
        ({"mkfsOptions": "x" * 2000}, ["mkfsOptions", "too long", "1024"]),
        ({"ctrlLossTimeout": "0"}, ["ctrlLossTimeout", "reconnectDelay"]),
        ({"ctrlLossTimeout": "5", "reconnectDelay": "10"}, ["ctrlLossTimeout", "reconnectDelay (10)"]),
        ({"ctrlLossTimeout": "-2"}, ["ctrlLossTimeout", "-2", "1 to 86400", "-1"]),
        ({"ctrlLossTimeout": "30s"}, ["ctrlLossTimeout", "30s", "whole numbers from 1 to 86400"]),
        ({"reconnectDelay": "0"}, ["reconnectDelay", "1 to 3600"]),
        ({"keepAliveTimeout": "0"}, ["keepAliveTimeout", "1 to 3600"]),
        ({"ioQueues": "1000"}, ["ioQueues", "1 to 128"]),
        ({"frontend": "loop", "ioQueues": "2"}, ["ioQueues", "loop", "leave it out"]),
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
    assert len(details) < 420


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
    wanted |= {"csi.storage.k8s.io/fstype": "ext4", "mkfsOptions": "-m 1 -L 'a'"}
    wanted |= {"iops": "2000", "bandwidth": "1.5Gi", "readBandwidth": "0", "writeBandwidth": "1048576"}
    metadata = {f"csi.storage.k8s.io/{key}": "x" for key in ("pvc/name", "pvc/namespace", "pv/name")}
    volume_id = await driver.client.create_volume("pvc-1", GIB, wanted | metadata)
    assert await driver.client.create_volume("pvc-1", GIB, wanted) == volume_id
    spec = (await driver.volumes.get(volume_id)).spec
    assert (spec.tier, spec.provisioning, spec.frontend) == ("hdd", "thick", "loop")
    assert spec.qos == Qos(2000, 3 << 29, 0, MIB)
    assert spec.parameters == tuple(sorted(wanted.items()))
    code, _ = await refusal(driver, "Controller/CreateVolume", create_request(parameters={"tier": "ssd"}))
    assert code is StatusCode.ALREADY_EXISTS


async def test_how_the_host_connects(driver: Driver) -> None:
    given = {"ctrlLossTimeout": "600", "reconnectDelay": "2", "keepAliveTimeout": "30", "ioQueues": "4"}
    chosen = await driver.client.create_volume("a", GIB, given)
    assert (await driver.volumes.get(chosen)).spec.connect == ConnectOptions(600, 2, 30, 4)
    default = await driver.client.create_volume("b", GIB, {"ctrlLossTimeout": "-1"})
    assert (await driver.volumes.get(default)).spec.connect == ConnectOptions()


async def test_limits_at_creation_and_afterwards(driver: Driver) -> None:
    request = create_request(
        parameters={"iops": "1000", "bandwidth": "8Mi"}, mutable_parameters={"iops": "0", "readBandwidth": "1Mi"}
    )
    volume_id = (await driver.client.call("Controller/CreateVolume", request)).volume.volume_id
    assert (await driver.volumes.get(volume_id)).spec.qos == Qos(0, 8 * MIB, MIB, 0)
    await driver.client.modify(volume_id, {"writeBandwidth": "2Mi", "bandwidth": "0"})
    assert (await driver.volumes.get(volume_id)).spec.qos == Qos(0, 0, MIB, 2 * MIB)
    await driver.client.modify(volume_id, {})
    again = await driver.client.call("Controller/CreateVolume", request)
    assert again.volume.volume_id == volume_id
    assert (await driver.volumes.get(volume_id)).spec.qos == Qos(0, 0, MIB, 2 * MIB)


@pytest.mark.parametrize(
    ("mutable", "mentioned"),
    [
        ({"tier": "hdd"}, ["tier", "accepted: iops, bandwidth, readBandwidth, writeBandwidth"]),
        ({"iops": "2000", "Bandwidth": "1Mi"}, ["Bandwidth", "unknown"]),
        ({"iops": "2500"}, ["iops", "use 2000 or 3000"]),
        ({"writeIops": "1000"}, ["writeIops", "use iops"]),
    ],
)
async def test_what_cannot_be_modified(driver: Driver, mutable: dict[str, str], mentioned: list[str]) -> None:
    volume_id = await driver.client.create_volume("pvc-1", GIB)
    creation = create_request(name="pvc-2", mutable_parameters=mutable)
    change = csi.ControllerModifyVolumeRequest(volume_id=volume_id, mutable_parameters=mutable)
    calls: list[tuple[str, Any]] = [("CreateVolume", creation), ("ControllerModifyVolume", change)]
    for method, request in calls:
        code, details = await refusal(driver, f"Controller/{method}", request)
        assert code is StatusCode.INVALID_ARGUMENT
        assert details.startswith("mutable_parameters[")
        assert all(word in details for word in mentioned), details
    assert (await driver.volumes.get(volume_id)).spec.qos == Qos()
    assert len((await driver.client.list_volumes()).entries) == 1


async def test_options_of_mkfs_are_those_of_the_filesystem_that_is_asked_for(driver: Driver) -> None:
    of_xfs = {"parameters": {"mkfsOptions": "-i size=1024"}, "capacity_range": csi.CapacityRange(required_bytes=GIB)}
    await driver.client.call(
        "Controller/CreateVolume", create_request(name="a", volume_capabilities=[capability(fs_type="xfs")], **of_xfs)
    )
    for_nobody = create_request(name="b", volume_capabilities=[capability(block=True)], **of_xfs)
    await driver.client.call("Controller/CreateVolume", for_nobody)
    wrong = create_request(name="c", parameters={"mkfsOptions": "-n size=8k"})
    assert (await refusal(driver, "Controller/CreateVolume", wrong))[0] is StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"volume_capabilities": []}, "volume_capabilities"),
        ({"volume_capabilities": [csi.VolumeCapability()]}, "volume_capabilities[0].access_type"),
        ({"volume_capabilities": [capability(mode=Mode.UNKNOWN)]}, "volume_capabilities[0].access_mode"),
        ({"volume_capabilities": [capability(mode=99)]}, "volume_capabilities[0].access_mode"),
        (
            {"volume_capabilities": [capability(), capability(mode=Mode.MULTI_NODE_MULTI_WRITER)]},
            "volume_capabilities[1].access_mode: MULTI_NODE_MULTI_WRITER is for raw block volumes only",
        ),
        (
            {"volume_capabilities": [capability(mode=Mode.MULTI_NODE_SINGLE_WRITER)]},
            "volume_capabilities[0].access_mode: MULTI_NODE_SINGLE_WRITER is for raw block volumes only",
        ),
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
        Mode.MULTI_NODE_SINGLE_WRITER,
        Mode.MULTI_NODE_MULTI_WRITER,
    ],
)
async def test_access_modes(driver: Driver, mode: Mode.Mode) -> None:
    shared = mode in (Mode.MULTI_NODE_SINGLE_WRITER, Mode.MULTI_NODE_MULTI_WRITER)
    volume_id = await driver.client.create_volume("pvc-1", GIB)
    await driver.client.publish(volume_id, "node-a", block=shared, mode=mode)
    attachment = (await driver.volumes.get(volume_id)).spec.attachments[0]
    assert attachment.readonly is (mode in (Mode.SINGLE_NODE_READER_ONLY, Mode.MULTI_NODE_READER_ONLY))
    assert attachment.access_mode.is_raw is shared
    for block in (False, True):
        answer = await driver.client.validate(volume_id, [capability(block=block, mode=mode)])
        assert bool(answer.confirmed.volume_capabilities) is (block or not shared)
        assert ("raw block" in answer.message) is (shared and not block)


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
        ("ControllerModifyVolume", csi.ControllerModifyVolumeRequest(), StatusCode.INVALID_ARGUMENT),
        (
            "ControllerModifyVolume",
            csi.ControllerModifyVolumeRequest(volume_id="v", mutable_parameters={"x": "1"}),
            StatusCode.INVALID_ARGUMENT,
        ),
        ("ControllerModifyVolume", csi.ControllerModifyVolumeRequest(volume_id="v"), StatusCode.NOT_FOUND),
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
