"""The CSI Controller service: volumes come and go, open and close for nodes, and grow."""

from __future__ import annotations

from typing import Any

from agent.csi import messages, paging, parameters, qos, topology, validation
from agent.csi.pb import csi_pb2 as csi
from agent.csi.pb import csi_pb2_grpc
from agent.csi.ports import Snapshots, Volumes
from agent.csi.snapshots import SnapshotCalls
from agent.errors import InvalidArgument, QuarryError
from agent.model import Frontend, Qos, Volume
from agent.pools.topology import node_id
from agent.volumes.rules.conditions import VolumeCondition
from agent.volumes.rules.requests import CreateVolume

_Rpc = csi.ControllerServiceCapability.RPC
_CAPABILITIES = (
    _Rpc.CREATE_DELETE_VOLUME,
    _Rpc.PUBLISH_UNPUBLISH_VOLUME,
    _Rpc.PUBLISH_READONLY,
    _Rpc.LIST_VOLUMES,
    _Rpc.LIST_VOLUMES_PUBLISHED_NODES,
    _Rpc.GET_CAPACITY,
    _Rpc.GET_VOLUME,
    _Rpc.VOLUME_CONDITION,
    _Rpc.CREATE_DELETE_SNAPSHOT,
    _Rpc.LIST_SNAPSHOTS,
    _Rpc.GET_SNAPSHOT,
    _Rpc.CLONE_VOLUME,
    _Rpc.EXPAND_VOLUME,
    _Rpc.MODIFY_VOLUME,
    _Rpc.SINGLE_NODE_MULTI_WRITER,
)


class ControllerService(SnapshotCalls, csi_pb2_grpc.ControllerServicer):
    """csi.v1.Controller."""

    def __init__(self, volumes: Volumes, snapshots: Snapshots) -> None:
        self._volumes = volumes
        self._snapshots = snapshots

    async def ControllerGetCapabilities(  # noqa: N802
        self, request: csi.ControllerGetCapabilitiesRequest, context: Any
    ) -> csi.ControllerGetCapabilitiesResponse:
        return csi.ControllerGetCapabilitiesResponse(
            capabilities=[csi.ControllerServiceCapability(rpc=_Rpc(type=kind)) for kind in _CAPABILITIES]
        )

    async def CreateVolume(  # noqa: N802
        self, request: csi.CreateVolumeRequest, context: Any
    ) -> csi.CreateVolumeResponse:
        volume = await self._volumes.create(_create_request(request))
        return csi.CreateVolumeResponse(volume=messages.volume(volume))

    async def DeleteVolume(  # noqa: N802
        self, request: csi.DeleteVolumeRequest, context: Any
    ) -> csi.DeleteVolumeResponse:
        await self._volumes.delete(validation.required("volume_id", request.volume_id))
        return csi.DeleteVolumeResponse()

    async def ControllerPublishVolume(  # noqa: N802
        self, request: csi.ControllerPublishVolumeRequest, context: Any
    ) -> csi.ControllerPublishVolumeResponse:
        volume_id = validation.required("volume_id", request.volume_id)
        node = validation.required("node_id", request.node_id)
        access = validation.required_capability(request)
        volume = await self._volumes.publish(
            volume_id, node, access_mode=access.access_mode, readonly=request.readonly or access.readonly
        )
        return csi.ControllerPublishVolumeResponse(publish_context=messages.publish_context(volume, node))

    async def ControllerUnpublishVolume(  # noqa: N802
        self, request: csi.ControllerUnpublishVolumeRequest, context: Any
    ) -> csi.ControllerUnpublishVolumeResponse:
        volume_id = validation.required("volume_id", request.volume_id)
        await self._volumes.unpublish(volume_id, request.node_id or None)
        return csi.ControllerUnpublishVolumeResponse()

    async def ValidateVolumeCapabilities(  # noqa: N802
        self, request: csi.ValidateVolumeCapabilitiesRequest, context: Any
    ) -> csi.ValidateVolumeCapabilitiesResponse:
        """What is not supported is an answer here (`confirmed` stays empty), only what is missing is an error."""
        volume_id = validation.required("volume_id", request.volume_id)
        if not request.volume_capabilities:
            raise InvalidArgument("volume_capabilities", "missing", "give at least one")
        volume = await self._volumes.get(volume_id)
        try:
            validation.capabilities(request.volume_capabilities)
            _check_same_parameters(volume, request)
        except QuarryError as unsupported:
            return csi.ValidateVolumeCapabilitiesResponse(message=str(unsupported))
        confirmed = csi.ValidateVolumeCapabilitiesResponse.Confirmed(
            volume_capabilities=request.volume_capabilities,
            volume_context=request.volume_context,
            parameters=request.parameters,
            mutable_parameters=request.mutable_parameters,
        )
        return csi.ValidateVolumeCapabilitiesResponse(confirmed=confirmed)

    async def ControllerModifyVolume(  # noqa: N802
        self, request: csi.ControllerModifyVolumeRequest, context: Any
    ) -> csi.ControllerModifyVolumeResponse:
        volume_id = validation.required("volume_id", request.volume_id)
        await self._volumes.modify(volume_id, qos.mutable(request.mutable_parameters))
        return csi.ControllerModifyVolumeResponse()

    async def ListVolumes(  # noqa: N802
        self, request: csi.ListVolumesRequest, context: Any
    ) -> csi.ListVolumesResponse:
        paging.check(request.max_entries)
        after = paging.last_of_page(request.starting_token)
        page, token = paging.page(await self._volumes.list(), after, request.max_entries)
        conditions = await self._volumes.conditions(page)
        entries = [_entry(volume, how) for volume, how in zip(page, conditions, strict=True)]
        return csi.ListVolumesResponse(entries=entries, next_token=token)

    async def ControllerGetVolume(  # noqa: N802
        self, request: csi.ControllerGetVolumeRequest, context: Any
    ) -> csi.ControllerGetVolumeResponse:
        volume = await self._volumes.get(validation.required("volume_id", request.volume_id))
        (how,) = await self._volumes.conditions([volume])
        return csi.ControllerGetVolumeResponse(
            volume=messages.volume(volume),
            status=csi.ControllerGetVolumeResponse.VolumeStatus(
                published_node_ids=[node_id(each.node) for each in volume.spec.attachments],
                volume_condition=messages.condition(how),
            ),
        )

    async def GetCapacity(  # noqa: N802
        self, request: csi.GetCapacityRequest, context: Any
    ) -> csi.GetCapacityResponse:
        if request.volume_capabilities:
            validation.capabilities(request.volume_capabilities)
        wanted = parameters.parse(request.parameters)
        segment = topology.segment(request.accessible_topology)
        return messages.capacity(await self._volumes.capacity(wanted.tier, wanted.provisioning, segment))

    async def ControllerExpandVolume(  # noqa: N802
        self, request: csi.ControllerExpandVolumeRequest, context: Any
    ) -> csi.ControllerExpandVolumeResponse:
        volume_id = validation.required("volume_id", request.volume_id)
        required_bytes, limit_bytes = validation.new_size(request.capacity_range)
        if request.HasField("volume_capability"):
            validation.capability(request.volume_capability)
        volume = await self._volumes.expand(volume_id, required_bytes, limit_bytes)
        block = request.volume_capability.HasField("block")
        return csi.ControllerExpandVolumeResponse(
            capacity_bytes=volume.status.size_bytes,
            # A raw NVMe namespace grows under its host by itself; a loop device and a filesystem have to be told.
            node_expansion_required=not (block and volume.spec.frontend is Frontend.NVME_TCP),
        )


def _create_request(request: csi.CreateVolumeRequest) -> CreateVolume:
    name = validation.name(request.name)
    validation.capabilities(request.volume_capabilities)
    source = validation.source(request)
    if source is None:
        required_bytes, limit_bytes = validation.size_range(request.capacity_range)
    else:  # no size given is the source's
        required_bytes, limit_bytes = validation.checked_range(request.capacity_range)
    wanted = parameters.parse(request.parameters)
    limits = qos.mutable(request.mutable_parameters).applied_to(wanted.qos.applied_to(Qos()))
    fs_types = validation.filesystems(request.volume_capabilities, wanted.fs_type)
    parameters.check_mkfs_options(wanted.mkfs_options, fs_types)
    validation.room_for_filesystems(fs_types, required_bytes)
    return CreateVolume(
        name=name,
        required_bytes=required_bytes,
        limit_bytes=limit_bytes,
        tier=wanted.tier,
        provisioning=wanted.provisioning,
        replica_count=wanted.replica_count,
        frontend=wanted.frontend,
        qos=limits,
        connect=wanted.connect,
        parameters=wanted.given,
        topology=topology.requirement(request.accessibility_requirements),
        source=source,
    )


def _check_same_parameters(volume: Volume, request: csi.ValidateVolumeCapabilitiesRequest) -> None:
    if request.parameters and parameters.parse(request.parameters).given != volume.spec.parameters:
        raise InvalidArgument("parameters", "not those the volume was created with")
    qos.mutable(request.mutable_parameters)


def _entry(volume: Volume, how: VolumeCondition) -> csi.ListVolumesResponse.Entry:
    return csi.ListVolumesResponse.Entry(
        volume=messages.volume(volume),
        status=csi.ListVolumesResponse.VolumeStatus(
            published_node_ids=[node_id(each.node) for each in volume.spec.attachments],
            volume_condition=messages.condition(how),
        ),
    )
