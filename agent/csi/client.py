"""A CSI client as orchestrators are, for the demo, benchmarks and tests: one method per call of the specification."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from agent.csi.pb import csi_pb2 as csi
from agent.csi.pb import csi_pb2_grpc
from agent.csi.snapshot_client import SnapshotClient
from agent.csi.tuning import modest_threads
from agent.errors import QuarryError

Mode = csi.VolumeCapability.AccessMode
_PathLike = str | Path


class CallFailed(QuarryError):
    """A CSI call was refused: `method`, gRPC `code` and the server's sentence in `details`."""

    def __init__(self, method: str, code: grpc.StatusCode, details: str) -> None:
        self.method = method
        self.code = code
        self.details = details
        super().__init__(f"{method}: {details} ({code.name})")


def capability(
    *,
    block: bool = False,
    fs_type: str = "ext4",
    mount_flags: Sequence[str] = (),
    mode: Mode.Mode = Mode.SINGLE_NODE_WRITER,
) -> csi.VolumeCapability:
    """How a volume is to be used."""
    access_mode = csi.VolumeCapability.AccessMode(mode=mode)
    if block:
        return csi.VolumeCapability(block=csi.VolumeCapability.BlockVolume(), access_mode=access_mode)
    mount = csi.VolumeCapability.MountVolume(fs_type=fs_type, mount_flags=mount_flags)
    return csi.VolumeCapability(mount=mount, access_mode=access_mode)


def from_snapshot(snapshot_id: str) -> csi.VolumeContentSource:
    """Of a new volume: it has what the snapshot has."""
    return csi.VolumeContentSource(snapshot=csi.VolumeContentSource.SnapshotSource(snapshot_id=snapshot_id))


def from_volume(volume_id: str) -> csi.VolumeContentSource:
    """Of a new volume: it has what that volume has now."""
    return csi.VolumeContentSource(volume=csi.VolumeContentSource.VolumeSource(volume_id=volume_id))


class CsiClient(SnapshotClient):
    """One connection to `unix:///abs/path`. Every call raises CallFailed and takes at most `timeout_s` seconds.

    `async with CsiClient(endpoint) as client`; it connects with the first call and reconnects by itself.
    """

    def __init__(self, endpoint: str, timeout_s: float = 60.0) -> None:
        self._timeout_s = timeout_s
        with modest_threads():
            self._channel = grpc.aio.insecure_channel(
                # A pool of its own: otherwise all clients of a process share one connection.
                endpoint,
                options=[("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 1000)],
            )
        stubs: Any = csi_pb2_grpc  # generated without types
        self._stubs = {
            "Identity": stubs.IdentityStub(self._channel),
            "Controller": stubs.ControllerStub(self._channel),
            "GroupController": stubs.GroupControllerStub(self._channel),
            "Node": stubs.NodeStub(self._channel),
        }

    async def __aenter__(self) -> CsiClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection; calls in flight fail."""
        await self._channel.close(None)

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait until the server answers (which says nothing of the target: see `probe`)."""
        await self._call("Identity", "GetPluginInfo", csi.GetPluginInfoRequest(), timeout_s, wait=True)

    async def call(self, method: str, request: Message, timeout_s: float | None = None) -> Any:
        """Any call, as "Service/Method" with its request message."""
        service, _, name = method.partition("/")
        return await self._call(service, name, request, timeout_s)

    # --- Identity --------------------------------------------------------------------------------------------

    async def plugin_info(self) -> csi.GetPluginInfoResponse:
        response: csi.GetPluginInfoResponse = await self.call("Identity/GetPluginInfo", csi.GetPluginInfoRequest())
        return response

    async def plugin_capabilities(self) -> csi.GetPluginCapabilitiesResponse:
        response: csi.GetPluginCapabilitiesResponse = await self.call(
            "Identity/GetPluginCapabilities", csi.GetPluginCapabilitiesRequest()
        )
        return response

    async def probe(self) -> bool:
        """Whether the target behind the server is ready."""
        response: csi.ProbeResponse = await self.call("Identity/Probe", csi.ProbeRequest())
        return response.ready.value

    # --- Controller ------------------------------------------------------------------------------------------

    async def create_volume(
        self,
        name: str,
        size_bytes: int,
        parameters: Mapping[str, str] | None = None,
        *,
        block: bool = False,
        fs_type: str = "ext4",
        limit_bytes: int = 0,
        source: csi.VolumeContentSource | None = None,
    ) -> str:
        """Create a volume; returns its id. `source`: see `from_snapshot` and `from_volume`."""
        request = csi.CreateVolumeRequest(
            name=name,
            capacity_range=csi.CapacityRange(required_bytes=size_bytes, limit_bytes=limit_bytes),
            volume_capabilities=[capability(block=block, fs_type=fs_type)],
            parameters=parameters,
            volume_content_source=source,
        )
        response: csi.CreateVolumeResponse = await self.call("Controller/CreateVolume", request)
        return response.volume.volume_id

    async def delete_volume(self, volume_id: str) -> None:
        await self.call("Controller/DeleteVolume", csi.DeleteVolumeRequest(volume_id=volume_id))

    async def publish(
        self,
        volume_id: str,
        node_id: str,
        *,
        readonly: bool = False,
        block: bool = False,
        mode: Mode.Mode = Mode.SINGLE_NODE_WRITER,
    ) -> Mapping[str, str]:
        """ControllerPublishVolume: open the volume to a node. Returns the publish context (address, NQN, ...)."""
        request = csi.ControllerPublishVolumeRequest(
            volume_id=volume_id,
            node_id=node_id,
            readonly=readonly,
            volume_capability=capability(block=block, mode=mode),
        )
        response: csi.ControllerPublishVolumeResponse = await self.call("Controller/ControllerPublishVolume", request)
        return dict(response.publish_context)

    async def unpublish(self, volume_id: str, node_id: str = "") -> None:
        """ControllerUnpublishVolume: close it, to every node when none is named."""
        request = csi.ControllerUnpublishVolumeRequest(volume_id=volume_id, node_id=node_id)
        await self.call("Controller/ControllerUnpublishVolume", request)

    async def expand(self, volume_id: str, size_bytes: int) -> csi.ControllerExpandVolumeResponse:
        request = csi.ControllerExpandVolumeRequest(
            volume_id=volume_id, capacity_range=csi.CapacityRange(required_bytes=size_bytes)
        )
        response: csi.ControllerExpandVolumeResponse = await self.call("Controller/ControllerExpandVolume", request)
        return response

    async def modify(self, volume_id: str, mutable: Mapping[str, str]) -> None:
        """ControllerModifyVolume: change limits of a volume, also of one in use."""
        request = csi.ControllerModifyVolumeRequest(volume_id=volume_id, mutable_parameters=mutable)
        await self.call("Controller/ControllerModifyVolume", request)

    async def validate(
        self, volume_id: str, capabilities: Iterable[csi.VolumeCapability]
    ) -> csi.ValidateVolumeCapabilitiesResponse:
        request = csi.ValidateVolumeCapabilitiesRequest(volume_id=volume_id, volume_capabilities=capabilities)
        response: csi.ValidateVolumeCapabilitiesResponse = await self.call(
            "Controller/ValidateVolumeCapabilities", request
        )
        return response

    async def list_volumes(self, max_entries: int = 0, token: str = "") -> csi.ListVolumesResponse:
        request = csi.ListVolumesRequest(max_entries=max_entries, starting_token=token)
        response: csi.ListVolumesResponse = await self.call("Controller/ListVolumes", request)
        return response

    async def get_volume(self, volume_id: str) -> csi.ControllerGetVolumeResponse:
        request = csi.ControllerGetVolumeRequest(volume_id=volume_id)
        response: csi.ControllerGetVolumeResponse = await self.call("Controller/ControllerGetVolume", request)
        return response

    async def capacity(self, parameters: Mapping[str, str] | None = None) -> int:
        """Bytes of all volumes with these parameters that could be created now."""
        return (await self.get_capacity(parameters)).available_capacity

    async def get_capacity(
        self, parameters: Mapping[str, str] | None = None, segments: Mapping[str, str] | None = None
    ) -> csi.GetCapacityResponse:
        """GetCapacity for volumes with these parameters in one topology segment."""
        where = csi.Topology(segments=segments) if segments is not None else None
        request = csi.GetCapacityRequest(parameters=parameters, accessible_topology=where)
        response: csi.GetCapacityResponse = await self.call("Controller/GetCapacity", request)
        return response

    # --- Node ------------------------------------------------------------------------------------------------

    async def node_info(self) -> csi.NodeGetInfoResponse:
        response: csi.NodeGetInfoResponse = await self.call("Node/NodeGetInfo", csi.NodeGetInfoRequest())
        return response

    async def stage(
        self, volume_id: str, staging_path: _PathLike, *, block: bool = False, fs_type: str = "ext4"
    ) -> None:
        """NodeStageVolume: attach, format when blank, mount at `staging_path`."""
        request = csi.NodeStageVolumeRequest(
            volume_id=volume_id,
            staging_target_path=str(staging_path),
            volume_capability=capability(block=block, fs_type=fs_type),
        )
        await self.call("Node/NodeStageVolume", request)

    async def unstage(self, volume_id: str, staging_path: _PathLike) -> None:
        request = csi.NodeUnstageVolumeRequest(volume_id=volume_id, staging_target_path=str(staging_path))
        await self.call("Node/NodeUnstageVolume", request)

    async def node_publish(
        self,
        volume_id: str,
        staging_path: _PathLike,
        target_path: _PathLike,
        *,
        readonly: bool = False,
        block: bool = False,
        fs_type: str = "ext4",
    ) -> None:
        """NodePublishVolume: make the staged volume appear at `target_path`."""
        request = csi.NodePublishVolumeRequest(
            volume_id=volume_id,
            staging_target_path=str(staging_path),
            target_path=str(target_path),
            readonly=readonly,
            volume_capability=capability(block=block, fs_type=fs_type),
        )
        await self.call("Node/NodePublishVolume", request)

    async def node_unpublish(self, volume_id: str, target_path: _PathLike) -> None:
        request = csi.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=str(target_path))
        await self.call("Node/NodeUnpublishVolume", request)

    async def node_expand(self, volume_id: str, path: _PathLike) -> int:
        """NodeExpandVolume: let device and filesystem follow. Returns the size in bytes."""
        request = csi.NodeExpandVolumeRequest(volume_id=volume_id, volume_path=str(path))
        response: csi.NodeExpandVolumeResponse = await self.call("Node/NodeExpandVolume", request)
        return response.capacity_bytes

    async def stats(self, volume_id: str, path: _PathLike) -> csi.NodeGetVolumeStatsResponse:
        request = csi.NodeGetVolumeStatsRequest(volume_id=volume_id, volume_path=str(path))
        response: csi.NodeGetVolumeStatsResponse = await self.call("Node/NodeGetVolumeStats", request)
        return response

    async def _call(
        self, service: str, method: str, request: Message, timeout_s: float | None, *, wait: bool = False
    ) -> Any:
        remote = getattr(self._stubs[service], method)
        timeout = self._timeout_s if timeout_s is None else timeout_s
        try:
            return await remote(request, timeout=timeout, wait_for_ready=wait or None)
        except grpc.aio.AioRpcError as error:
            code, details = error.code(), error.details()
            raise CallFailed(method, code, details or "no details") from error
