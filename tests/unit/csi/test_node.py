from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode

from agent.csi.client import CallFailed, Mode, capability
from agent.csi.pb import csi_pb2 as csi
from agent.volumes.rules.modes import Block, Filesystem

from .conftest import Driver

GIB = 1 << 30


async def published(driver: Driver, parameters: dict[str, str] | None = None, **how: Any) -> str:
    volume_id = await driver.client.create_volume("pvc-1", GIB, parameters)
    await driver.client.publish(volume_id, "node-a", **how)
    return volume_id


@pytest.mark.parametrize("block", [False, True])
async def test_life_of_a_volume_on_the_node(driver: Driver, tmp_path: Path, block: bool) -> None:
    client, target = driver.client, tmp_path / "target"
    volume_id = await published(driver, block=block)
    for _ in range(3):
        await client.stage(volume_id, tmp_path, block=block)
    for _ in range(3):
        await client.node_publish(volume_id, tmp_path, target, block=block)
    assert target.is_file() is block
    stats = await client.stats(volume_id, target)
    units = [usage.unit for usage in stats.usage]
    assert units == ([csi.VolumeUsage.BYTES] if block else [csi.VolumeUsage.BYTES, csi.VolumeUsage.INODES])
    assert stats.usage[0].total == GIB
    await client.expand(volume_id, 2 * GIB)
    assert await client.node_expand(volume_id, target) == 2 * GIB
    for _ in range(2):
        await client.node_unpublish(volume_id, target)
    assert not target.exists()
    for _ in range(2):
        await client.unstage(volume_id, tmp_path)
    await client.unpublish(volume_id, "node-a")
    await client.delete_volume(volume_id)
    await client.unstage(volume_id, tmp_path)
    assert not driver.node.staged


@pytest.mark.parametrize(
    ("asked", "of_class", "made"),
    [("", "", "ext4"), ("xfs", "", "xfs"), ("", "xfs", "xfs"), ("ext4", "xfs", "ext4")],
)
async def test_the_filesystem_of_the_capability_then_of_the_class(
    driver: Driver, tmp_path: Path, asked: str, of_class: str, made: str
) -> None:
    volume_id = await published(driver, {"csi.storage.k8s.io/fstype": of_class} if of_class else None)
    await driver.client.stage(volume_id, tmp_path, fs_type=asked)
    (staged,) = driver.node.staged.values()
    assert staged.mode == Filesystem(fs_type=made)


async def test_the_scheduler_is_told_how_many_volumes_fit(driver: Driver) -> None:
    assert (await driver.client.node_info()).max_volumes_per_node == 7


async def test_options_of_mkfs_arrive(driver: Driver, tmp_path: Path) -> None:
    volume_id = await published(driver, {"mkfsOptions": '-L "data" -E stride=16', "iops": "1000"})
    await driver.client.stage(volume_id, tmp_path, fs_type="ext4")
    (staged,) = driver.node.staged.values()
    assert staged.mode == Filesystem("ext4", (), ("-L", "data", "-E", "stride=16"))


async def test_mount_flags_arrive(driver: Driver, tmp_path: Path) -> None:
    volume_id = await published(driver)
    request = csi.NodeStageVolumeRequest(
        volume_id=volume_id,
        staging_target_path=str(tmp_path),
        volume_capability=capability(fs_type="xfs", mount_flags=["noatime", "logbsize=256k"]),
    )
    await driver.client.call("Node/NodeStageVolume", request)
    (staged,) = driver.node.staged.values()
    assert staged.mode == Filesystem("xfs", ("noatime", "logbsize=256k"))


@pytest.mark.parametrize(
    ("mode", "readonly"),
    [(Mode.SINGLE_NODE_WRITER, False), (Mode.SINGLE_NODE_READER_ONLY, True), (Mode.MULTI_NODE_READER_ONLY, True)],
)
async def test_reader_modes_are_read_only(driver: Driver, tmp_path: Path, mode: Mode.Mode, readonly: bool) -> None:
    volume_id = await published(driver)
    use, target = capability(block=True, mode=mode), tmp_path / "t"
    stage = csi.NodeStageVolumeRequest(volume_id=volume_id, staging_target_path=str(tmp_path), volume_capability=use)
    await driver.client.call("Node/NodeStageVolume", stage)
    publish = csi.NodePublishVolumeRequest(
        volume_id=volume_id, staging_target_path=str(tmp_path), target_path=str(target), volume_capability=use
    )
    await driver.client.call("Node/NodePublishVolume", publish)
    (staged,) = driver.node.staged.values()
    assert (staged.mode, staged.readonly, staged.targets) == (Block(), readonly, {target: readonly})


MOUNT = capability()
UNKNOWN = "fake-vol-id-1234"


@pytest.mark.parametrize(
    ("method", "request_", "code"),
    [
        ("NodeStageVolume", csi.NodeStageVolumeRequest(), StatusCode.INVALID_ARGUMENT),
        ("NodeStageVolume", csi.NodeStageVolumeRequest(volume_id=UNKNOWN), StatusCode.INVALID_ARGUMENT),
        (
            "NodeStageVolume",
            csi.NodeStageVolumeRequest(volume_id=UNKNOWN, staging_target_path="/s"),
            StatusCode.INVALID_ARGUMENT,
        ),
        (
            "NodeStageVolume",
            csi.NodeStageVolumeRequest(volume_id=UNKNOWN, staging_target_path="/s", volume_capability=MOUNT),
            StatusCode.NOT_FOUND,
        ),
        (
            "NodeStageVolume",
            csi.NodeStageVolumeRequest(volume_id=UNKNOWN, staging_target_path="/\0", volume_capability=MOUNT),
            StatusCode.INVALID_ARGUMENT,
        ),
        (
            "NodeStageVolume",
            csi.NodeStageVolumeRequest(volume_id=UNKNOWN, staging_target_path="/x" * 3000, volume_capability=MOUNT),
            StatusCode.INVALID_ARGUMENT,
        ),
        ("NodeUnstageVolume", csi.NodeUnstageVolumeRequest(), StatusCode.INVALID_ARGUMENT),
        ("NodeUnstageVolume", csi.NodeUnstageVolumeRequest(volume_id=UNKNOWN), StatusCode.INVALID_ARGUMENT),
        ("NodePublishVolume", csi.NodePublishVolumeRequest(), StatusCode.INVALID_ARGUMENT),
        ("NodePublishVolume", csi.NodePublishVolumeRequest(volume_id=UNKNOWN), StatusCode.INVALID_ARGUMENT),
        (
            "NodePublishVolume",
            csi.NodePublishVolumeRequest(volume_id=UNKNOWN, target_path="/t"),
            StatusCode.INVALID_ARGUMENT,
        ),
        (
            "NodePublishVolume",
            csi.NodePublishVolumeRequest(volume_id=UNKNOWN, target_path="/t", volume_capability=MOUNT),
            StatusCode.FAILED_PRECONDITION,
        ),
        (
            "NodePublishVolume",
            csi.NodePublishVolumeRequest(
                volume_id=UNKNOWN, target_path="/t", staging_target_path="/s", volume_capability=MOUNT
            ),
            StatusCode.NOT_FOUND,
        ),
        ("NodeUnpublishVolume", csi.NodeUnpublishVolumeRequest(), StatusCode.INVALID_ARGUMENT),
        ("NodeUnpublishVolume", csi.NodeUnpublishVolumeRequest(volume_id=UNKNOWN), StatusCode.INVALID_ARGUMENT),
        ("NodeGetVolumeStats", csi.NodeGetVolumeStatsRequest(), StatusCode.INVALID_ARGUMENT),
        ("NodeGetVolumeStats", csi.NodeGetVolumeStatsRequest(volume_id=UNKNOWN), StatusCode.INVALID_ARGUMENT),
        (
            "NodeGetVolumeStats",
            csi.NodeGetVolumeStatsRequest(volume_id=UNKNOWN, volume_path="some/path"),
            StatusCode.NOT_FOUND,
        ),
        ("NodeExpandVolume", csi.NodeExpandVolumeRequest(), StatusCode.INVALID_ARGUMENT),
        ("NodeExpandVolume", csi.NodeExpandVolumeRequest(volume_id=UNKNOWN), StatusCode.INVALID_ARGUMENT),
        (
            "NodeExpandVolume",
            csi.NodeExpandVolumeRequest(volume_id=UNKNOWN, volume_path="some/path"),
            StatusCode.NOT_FOUND,
        ),
    ],
)
async def test_what_is_missing_is_found_before_what_does_not_exist(
    driver: Driver, method: str, request_: Any, code: StatusCode
) -> None:
    with pytest.raises(CallFailed) as caught:
        await driver.client.call(f"Node/{method}", request_)
    assert caught.value.code is code


async def test_a_path_where_the_volume_is_not(driver: Driver, tmp_path: Path) -> None:
    volume_id = await published(driver)
    await driver.client.stage(volume_id, tmp_path)
    with pytest.raises(CallFailed) as caught:
        await driver.client.stats(volume_id, "some/path")
    assert caught.value.code is StatusCode.NOT_FOUND


async def test_the_node_cannot_grow_beyond_what_the_controller_gave(driver: Driver, tmp_path: Path) -> None:
    volume_id = await published(driver)
    await driver.client.stage(volume_id, tmp_path)
    request = csi.NodeExpandVolumeRequest(
        volume_id=volume_id, volume_path=str(tmp_path), capacity_range=csi.CapacityRange(required_bytes=2 * GIB)
    )
    with pytest.raises(CallFailed) as caught:
        await driver.client.call("Node/NodeExpandVolume", request)
    assert caught.value.code is StatusCode.OUT_OF_RANGE
    await driver.client.expand(volume_id, 2 * GIB)
    assert (await driver.client.call("Node/NodeExpandVolume", request)).capacity_bytes == 2 * GIB


async def test_info_and_capabilities(driver: Driver) -> None:
    info = await driver.client.node_info()
    assert info.node_id == "node-a"
    answer = await driver.client.call("Node/NodeGetCapabilities", csi.NodeGetCapabilitiesRequest())
    kinds = {csi.NodeServiceCapability.RPC.Type.Name(each.rpc.type) for each in answer.capabilities}
    assert {"STAGE_UNSTAGE_VOLUME", "GET_VOLUME_STATS", "EXPAND_VOLUME"} <= kinds
