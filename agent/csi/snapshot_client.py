"""The snapshot calls of `agent.csi.client.CsiClient`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.message import Message

from agent.csi.pb import csi_pb2 as csi


class SnapshotClient:
    """Each raises CallFailed."""

    @abstractmethod
    async def call(self, method: str, request: Message, timeout_s: float | None = None) -> Any: ...

    async def create_snapshot(
        self, name: str, volume_id: str, parameters: Mapping[str, str] | None = None
    ) -> csi.Snapshot:
        request = csi.CreateSnapshotRequest(name=name, source_volume_id=volume_id, parameters=parameters)
        response: csi.CreateSnapshotResponse = await self.call("Controller/CreateSnapshot", request)
        return response.snapshot

    async def delete_snapshot(self, snapshot_id: str) -> None:
        await self.call("Controller/DeleteSnapshot", csi.DeleteSnapshotRequest(snapshot_id=snapshot_id))

    async def get_snapshot(self, snapshot_id: str) -> csi.Snapshot:
        response: csi.GetSnapshotResponse = await self.call(
            "Controller/GetSnapshot", csi.GetSnapshotRequest(snapshot_id=snapshot_id)
        )
        return response.snapshot

    async def list_snapshots(
        self, *, volume_id: str = "", snapshot_id: str = "", max_entries: int = 0, token: str = ""
    ) -> csi.ListSnapshotsResponse:
        request = csi.ListSnapshotsRequest(
            source_volume_id=volume_id, snapshot_id=snapshot_id, max_entries=max_entries, starting_token=token
        )
        response: csi.ListSnapshotsResponse = await self.call("Controller/ListSnapshots", request)
        return response

    async def create_group(self, name: str, volume_ids: Sequence[str]) -> csi.VolumeGroupSnapshot:
        request = csi.CreateVolumeGroupSnapshotRequest(name=name, source_volume_ids=volume_ids)
        response: csi.CreateVolumeGroupSnapshotResponse = await self.call(
            "GroupController/CreateVolumeGroupSnapshot", request
        )
        return response.group_snapshot

    async def delete_group(self, group_id: str, snapshot_ids: Sequence[str]) -> None:
        request = csi.DeleteVolumeGroupSnapshotRequest(group_snapshot_id=group_id, snapshot_ids=snapshot_ids)
        await self.call("GroupController/DeleteVolumeGroupSnapshot", request)

    async def get_group(self, group_id: str, snapshot_ids: Sequence[str]) -> csi.VolumeGroupSnapshot:
        request = csi.GetVolumeGroupSnapshotRequest(group_snapshot_id=group_id, snapshot_ids=snapshot_ids)
        response: csi.GetVolumeGroupSnapshotResponse = await self.call(
            "GroupController/GetVolumeGroupSnapshot", request
        )
        return response.group_snapshot
