"""From domain resources to the protobuf messages that describe them."""

from __future__ import annotations

import ipaddress

from agent.csi import TOPOLOGY_NODE
from agent.csi.pb import csi_pb2 as csi
from agent.csi.ports import VolumeStats
from agent.model import Endpoint, Frontend, Volume


def topology(node: str) -> csi.Topology:
    """The topology of one node."""
    return csi.Topology(segments={TOPOLOGY_NODE: node})


def volume(resource: Volume) -> csi.Volume:
    """A volume as CreateVolume and ListVolumes answer it, with its real size."""
    return csi.Volume(
        volume_id=resource.meta.name,
        capacity_bytes=resource.status.size_bytes or resource.spec.size_bytes,
        accessible_topology=[topology(node) for node in _nodes_it_is_bound_to(resource)],
    )


def publish_context(resource: Volume, node: str) -> dict[str, str]:
    """What a node needs to find the volume: the address, and as whom it is let in."""
    context = {"frontend": str(resource.spec.frontend)}
    for replica in resource.status.replicas:
        if replica.endpoint:
            context |= {
                "nqn": replica.endpoint.nqn,
                "address": replica.endpoint.address,
                "port": str(replica.endpoint.port),
                "uuid": replica.lvol_uuid,
            }
            break
    for attachment in resource.spec.attachments:
        if attachment.node == node:
            context["hostNqn"] = attachment.host_nqn
    return context


def usage(stats: VolumeStats) -> list[csi.VolumeUsage]:
    """Bytes, and inodes where there is a filesystem."""
    unit = csi.VolumeUsage.Unit
    answer = [
        csi.VolumeUsage(
            unit=unit.BYTES, total=stats.total_bytes, used=stats.used_bytes, available=stats.available_bytes
        )
    ]
    if stats.total_inodes:
        answer.append(
            csi.VolumeUsage(
                unit=unit.INODES, total=stats.total_inodes, used=stats.used_inodes, available=stats.available_inodes
            )
        )
    return answer


def _nodes_it_is_bound_to(resource: Volume) -> list[str]:
    """Nodes outside of which the volume cannot be used; empty when every node reaches it over the network."""
    endpoints = [replica.endpoint for replica in resource.status.replicas]
    if resource.spec.frontend is Frontend.NVME_TCP and endpoints and all(map(_is_remote, endpoints)):
        return []
    return sorted({replica.node for replica in resource.spec.placement})


def _is_remote(endpoint: Endpoint | None) -> bool:
    """Whether other machines can connect to it; a name that is no address is believed."""
    if endpoint is None:
        return False
    try:
        return not ipaddress.ip_address(endpoint.address).is_loopback
    except ValueError:
        return endpoint.address != "localhost"
