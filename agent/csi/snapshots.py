"""The snapshot calls of the CSI Controller service."""

from __future__ import annotations

from typing import Any

from agent.csi import messages, paging, parameters, validation
from agent.csi.pb import csi_pb2 as csi
from agent.csi.ports import Snapshots
from agent.errors import NotFound
from agent.model import Snapshot


class SnapshotCalls:
    """Part of csi.v1.Controller."""

    _snapshots: Snapshots

    async def CreateSnapshot(  # noqa: N802
        self, request: csi.CreateSnapshotRequest, context: Any
    ) -> csi.CreateSnapshotResponse:
        name = validation.name(request.name)
        volume_id = validation.required("source_volume_id", request.source_volume_id)
        parameters.refuse_any(request.parameters)
        snapshot = await self._snapshots.create(name, volume_id)
        return csi.CreateSnapshotResponse(snapshot=messages.snapshot(snapshot))

    async def DeleteSnapshot(  # noqa: N802
        self, request: csi.DeleteSnapshotRequest, context: Any
    ) -> csi.DeleteSnapshotResponse:
        await self._snapshots.delete(validation.required("snapshot_id", request.snapshot_id))
        return csi.DeleteSnapshotResponse()

    async def ListSnapshots(  # noqa: N802
        self, request: csi.ListSnapshotsRequest, context: Any
    ) -> csi.ListSnapshotsResponse:
        """Pages as ListVolumes has them. Ids that nobody has are no error, there is just nothing to list."""
        paging.check(request.max_entries)
        after = paging.last_of_page(request.starting_token)
        if request.snapshot_id:
            found = await self._find(request.snapshot_id)
            found = [each for each in found if request.source_volume_id in ("", each.spec.volume)]
        else:
            found = await self._snapshots.list(request.source_volume_id)
        page, token = paging.page(found, after, request.max_entries)
        entries = [csi.ListSnapshotsResponse.Entry(snapshot=messages.snapshot(each)) for each in page]
        return csi.ListSnapshotsResponse(entries=entries, next_token=token)

    async def GetSnapshot(  # noqa: N802
        self, request: csi.GetSnapshotRequest, context: Any
    ) -> csi.GetSnapshotResponse:
        snapshot = await self._snapshots.get(validation.required("snapshot_id", request.snapshot_id))
        return csi.GetSnapshotResponse(snapshot=messages.snapshot(snapshot))

    async def _find(self, snapshot_id: str) -> list[Snapshot]:
        try:
            return [await self._snapshots.get(snapshot_id)]
        except NotFound:
            return []
