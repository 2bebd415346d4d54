"""The snapshot calls of `agent.csi.client.CsiClient`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
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
