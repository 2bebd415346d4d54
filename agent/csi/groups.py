"""The CSI GroupController service: snapshots of several volumes at one point in time."""

from __future__ import annotations

from typing import Any

from agent.csi import messages, parameters, validation
from agent.csi.pb import csi_pb2 as csi
from agent.csi.pb import csi_pb2_grpc
from agent.csi.ports import Groups
from agent.errors import InvalidArgument

_Rpc = csi.GroupControllerServiceCapability.RPC


class GroupControllerService(csi_pb2_grpc.GroupControllerServicer):
    """csi.v1.GroupController."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups

    async def GroupControllerGetCapabilities(  # noqa: N802
        self, request: csi.GroupControllerGetCapabilitiesRequest, context: Any
    ) -> csi.GroupControllerGetCapabilitiesResponse:
        kind = _Rpc.CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT
        return csi.GroupControllerGetCapabilitiesResponse(
            capabilities=[csi.GroupControllerServiceCapability(rpc=_Rpc(type=kind))]
        )

    async def CreateVolumeGroupSnapshot(  # noqa: N802
        self, request: csi.CreateVolumeGroupSnapshotRequest, context: Any
    ) -> csi.CreateVolumeGroupSnapshotResponse:
        name = validation.name(request.name)
        volumes = _ids("source_volume_ids", request.source_volume_ids)
        parameters.refuse_any(request.parameters)
        members = await self._groups.create(name, volumes)
        return csi.CreateVolumeGroupSnapshotResponse(group_snapshot=messages.group(members))

    async def DeleteVolumeGroupSnapshot(  # noqa: N802
        self, request: csi.DeleteVolumeGroupSnapshotRequest, context: Any
    ) -> csi.DeleteVolumeGroupSnapshotResponse:
        group = validation.required("group_snapshot_id", request.group_snapshot_id)
        await self._groups.delete(group, list(request.snapshot_ids))
        return csi.DeleteVolumeGroupSnapshotResponse()

    async def GetVolumeGroupSnapshot(  # noqa: N802
        self, request: csi.GetVolumeGroupSnapshotRequest, context: Any
    ) -> csi.GetVolumeGroupSnapshotResponse:
        group = validation.required("group_snapshot_id", request.group_snapshot_id)
        members = await self._groups.get(group, list(request.snapshot_ids))
        return csi.GetVolumeGroupSnapshotResponse(group_snapshot=messages.group(members))


def _ids(field: str, values: Any) -> list[str]:
    """Ids, at least one and none twice."""
    if not values:
        raise InvalidArgument(field, "missing", "give at least one")
    found = [validation.required(f"{field}[{index}]", value) for index, value in enumerate(values)]
    if len(set(found)) < len(found):
        raise InvalidArgument(field, "names a volume twice", "give each once")
    return found
