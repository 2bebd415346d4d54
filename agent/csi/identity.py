"""The CSI Identity service: who we are, what we offer, whether the target behind us is ready."""

from __future__ import annotations

from typing import Any

from google.protobuf import wrappers_pb2

from agent import __version__
from agent.csi import DRIVER_NAME
from agent.csi.pb import csi_pb2 as csi
from agent.csi.pb import csi_pb2_grpc
from agent.csi.ports import Prober
from agent.model import TargetState

_Service = csi.PluginCapability.Service
_Expansion = csi.PluginCapability.VolumeExpansion


class IdentityService(csi_pb2_grpc.IdentityServicer):
    """csi.v1.Identity. `has_groups`: whether group snapshots are served too."""

    def __init__(self, prober: Prober, *, has_groups: bool = False) -> None:
        self._prober = prober
        self._has_groups = has_groups

    async def GetPluginInfo(  # noqa: N802
        self, request: csi.GetPluginInfoRequest, context: Any
    ) -> csi.GetPluginInfoResponse:
        return csi.GetPluginInfoResponse(name=DRIVER_NAME, vendor_version=__version__)

    async def GetPluginCapabilities(  # noqa: N802
        self, request: csi.GetPluginCapabilitiesRequest, context: Any
    ) -> csi.GetPluginCapabilitiesResponse:
        services = [_Service.CONTROLLER_SERVICE, _Service.VOLUME_ACCESSIBILITY_CONSTRAINTS]
        if self._has_groups:
            services.append(_Service.GROUP_CONTROLLER_SERVICE)
        return csi.GetPluginCapabilitiesResponse(
            capabilities=[
                *(csi.PluginCapability(service=_Service(type=service)) for service in services),
                csi.PluginCapability(volume_expansion=_Expansion(type=_Expansion.ONLINE)),
            ]
        )

    async def Probe(self, request: csi.ProbeRequest, context: Any) -> csi.ProbeResponse:  # noqa: N802
        """Not ready while the target starts or cannot be reached.

        Never an error: to the sidecars an error from Probe is fatal and `ready: false` means "wait", and a target
        that comes back is exactly what there is to wait for.
        """
        ready = self._prober.health() is TargetState.READY
        return csi.ProbeResponse(ready=wrappers_pb2.BoolValue(value=ready))
