"""The CSI Node service: volumes become filesystems and block devices on this machine, and go again."""

from __future__ import annotations

import dataclasses
from typing import Any

from agent.csi import messages, parameters, topology, validation
from agent.csi.parameters import FS_TYPE_KEY, FS_TYPES
from agent.csi.pb import csi_pb2 as csi
from agent.csi.pb import csi_pb2_grpc
from agent.csi.ports import NodeSide, VolumeReader
from agent.errors import FailedPrecondition, NotFound, OutOfRange
from agent.model import StorageNode, Volume
from agent.pools.topology import node_id
from agent.volumes.rules.conditions import VolumeCondition
from agent.volumes.rules.modes import Filesystem, VolumeMode

_Rpc = csi.NodeServiceCapability.RPC
_CAPABILITIES = (
    _Rpc.STAGE_UNSTAGE_VOLUME,
    _Rpc.GET_VOLUME_STATS,
    _Rpc.VOLUME_CONDITION,
    _Rpc.EXPAND_VOLUME,
    _Rpc.SINGLE_NODE_MULTI_WRITER,
)


class NodeService(csi_pb2_grpc.NodeServicer):
    """csi.v1.Node for the machine that `this` describes."""

    def __init__(self, volumes: VolumeReader, node: NodeSide, this: StorageNode) -> None:
        self._volumes = volumes
        self._node = node
        self._this = this

    async def NodeGetCapabilities(  # noqa: N802
        self, request: csi.NodeGetCapabilitiesRequest, context: Any
    ) -> csi.NodeGetCapabilitiesResponse:
        return csi.NodeGetCapabilitiesResponse(
            capabilities=[csi.NodeServiceCapability(rpc=_Rpc(type=kind)) for kind in _CAPABILITIES]
        )

    async def NodeGetInfo(  # noqa: N802
        self, request: csi.NodeGetInfoRequest, context: Any
    ) -> csi.NodeGetInfoResponse:
        name = self._this.meta.name
        return csi.NodeGetInfoResponse(
            node_id=node_id(name),
            max_volumes_per_node=self._this.status.max_volumes,
            accessible_topology=topology.of_node(name, self._this.status.zone),
        )

    async def NodeStageVolume(  # noqa: N802
        self, request: csi.NodeStageVolumeRequest, context: Any
    ) -> csi.NodeStageVolumeResponse:
        volume_id = validation.required("volume_id", request.volume_id)
        staging = validation.path("staging_target_path", request.staging_target_path)
        access = validation.required_capability(request)
        volume = await self._volumes.get(volume_id)
        mode = _mode(request.volume_capability, access.volume_mode, volume)
        await self._node.stage(volume, staging, mode, readonly=access.readonly)
        return csi.NodeStageVolumeResponse()

    async def NodeUnstageVolume(  # noqa: N802
        self, request: csi.NodeUnstageVolumeRequest, context: Any
    ) -> csi.NodeUnstageVolumeResponse:
        """Works for a volume that is gone from the store too: what it left on this machine has to go."""
        volume_id = validation.required("volume_id", request.volume_id)
        staging = validation.path("staging_target_path", request.staging_target_path)
        await self._node.unstage(volume_id, await self._find(volume_id), staging)
        return csi.NodeUnstageVolumeResponse()

    async def NodePublishVolume(  # noqa: N802
        self, request: csi.NodePublishVolumeRequest, context: Any
    ) -> csi.NodePublishVolumeResponse:
        volume_id = validation.required("volume_id", request.volume_id)
        target = validation.path("target_path", request.target_path)
        access = validation.required_capability(request)
        if not request.staging_target_path:  # the one missing field the specification has another code for
            raise FailedPrecondition("staging_target_path: missing; stage the volume first and say where")
        staging = validation.path("staging_target_path", request.staging_target_path)
        volume = await self._volumes.get(volume_id)
        mode = access.volume_mode
        if isinstance(mode, Filesystem):  # one that the capability leaves open is whatever was staged
            mode = dataclasses.replace(mode, fs_type=request.volume_capability.mount.fs_type)
        await self._node.publish(volume, staging, target, mode, readonly=request.readonly or access.readonly)
        return csi.NodePublishVolumeResponse()

    async def NodeUnpublishVolume(  # noqa: N802
        self, request: csi.NodeUnpublishVolumeRequest, context: Any
    ) -> csi.NodeUnpublishVolumeResponse:
        volume_id = validation.required("volume_id", request.volume_id)
        await self._node.unpublish(volume_id, validation.path("target_path", request.target_path))
        return csi.NodeUnpublishVolumeResponse()

    async def NodeExpandVolume(  # noqa: N802
        self, request: csi.NodeExpandVolumeRequest, context: Any
    ) -> csi.NodeExpandVolumeResponse:
        volume_id = validation.required("volume_id", request.volume_id)
        path = validation.path("volume_path", request.volume_path)
        required_bytes, _ = validation.checked_range(request.capacity_range)
        if request.HasField("volume_capability"):
            validation.capability(request.volume_capability)
        volume = await self._volumes.get(volume_id)
        if volume.status.size_bytes < required_bytes:
            raise OutOfRange(
                f"volume {volume_id} has {volume.status.size_bytes} bytes, {required_bytes} are required; "
                "expand it with ControllerExpandVolume first"
            )
        return csi.NodeExpandVolumeResponse(capacity_bytes=await self._node.expand(volume, path))

    async def NodeGetVolumeStats(  # noqa: N802
        self, request: csi.NodeGetVolumeStatsRequest, context: Any
    ) -> csi.NodeGetVolumeStatsResponse:
        volume_id = validation.required("volume_id", request.volume_id)
        path = validation.path("volume_path", request.volume_path)
        volume = await self._volumes.get(volume_id)
        stats = await self._node.stats(volume, path)
        (how,) = await self._volumes.conditions([volume])
        if stats.remark and not how.abnormal:
            how = VolumeCondition(False, stats.remark)
        if stats.problem:
            how = VolumeCondition(True, f"{stats.problem}; {how.message}" if how.abnormal else stats.problem)
        return csi.NodeGetVolumeStatsResponse(usage=messages.usage(stats), volume_condition=messages.condition(how))

    async def _find(self, volume_id: str) -> Volume | None:
        try:
            return await self._volumes.get(volume_id)
        except NotFound:
            return None


def _mode(capability: csi.VolumeCapability, mode: VolumeMode, volume: Volume) -> VolumeMode:
    """`mode` as the StorageClass has it: the filesystem where the capability leaves it open, and how to make it."""
    if not isinstance(mode, Filesystem):
        return mode
    of_class = dict(volume.spec.parameters)
    fs_type = capability.mount.fs_type or of_class.get(FS_TYPE_KEY) or FS_TYPES[0]
    return dataclasses.replace(mode, fs_type=fs_type, mkfs_options=parameters.mkfs_options(of_class))
