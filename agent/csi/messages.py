"""From domain resources to the protobuf messages that describe them."""

from __future__ import annotations

from agent.csi import topology
from agent.csi.pb import csi_pb2 as csi
from agent.model import Snapshot, SnapshotPhase, SourceKind, Volume, VolumeSource
from agent.pools.ledger import Capacity
from agent.pools.topology import bound_to, node_id
from agent.volumes.rules.conditions import VolumeCondition
from agent.volumes.rules.members import Members
from agent.volumes.rules.volume_stats import VolumeStats


def volume(resource: Volume) -> csi.Volume:
    """A volume as CreateVolume and ListVolumes answer it, with its real size."""
    made_of = resource.spec.source
    return csi.Volume(
        content_source=_content_source(made_of) if made_of else None,
        volume_id=resource.meta.name,
        capacity_bytes=resource.status.size_bytes or resource.spec.size_bytes,
        accessible_topology=[topology.of_node(node) for node in bound_to(resource)],
    )


def snapshot(resource: Snapshot) -> csi.Snapshot:
    """A snapshot as CreateSnapshot and ListSnapshots answer it. Its size is the least of a volume made of it."""
    answer = csi.Snapshot(
        snapshot_id=resource.meta.name,
        source_volume_id=resource.spec.volume,
        size_bytes=resource.least_bytes,
        ready_to_use=resource.status.phase is SnapshotPhase.READY,
        group_snapshot_id=resource.spec.group,
    )
    answer.creation_time.FromNanoseconds(_nanoseconds(resource.status.created_at))
    return answer


def group(members: Members) -> csi.VolumeGroupSnapshot:
    """A group of snapshots with all of them."""
    answer = csi.VolumeGroupSnapshot(
        group_snapshot_id=members.group.meta.name,
        snapshots=[snapshot(each) for each in members.snapshots],
        ready_to_use=all(each.status.phase is SnapshotPhase.READY for each in members.snapshots),
    )
    answer.creation_time.FromNanoseconds(_nanoseconds(members.group.status.created_at))
    return answer


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
        if node in (attachment.node, node_id(attachment.node)):
            context["hostNqn"] = attachment.host_nqn
    return context


def capacity(of: Capacity) -> csi.GetCapacityResponse:
    """Room, and between what sizes one volume may be; no sizes where nothing can be created."""
    answer = csi.GetCapacityResponse(available_capacity=of.total_bytes)
    answer.maximum_volume_size.value = of.largest_bytes
    if of.smallest_bytes:
        answer.minimum_volume_size.value = of.smallest_bytes
    return answer


def condition(of: VolumeCondition) -> csi.VolumeCondition:
    """How a volume is."""
    return csi.VolumeCondition(abnormal=of.abnormal, message=of.message)


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


def _content_source(made_of: VolumeSource) -> csi.VolumeContentSource:
    content = csi.VolumeContentSource
    if made_of.kind is SourceKind.SNAPSHOT:
        return content(snapshot=content.SnapshotSource(snapshot_id=made_of.id))
    return content(volume=content.VolumeSource(volume_id=made_of.id))


def _nanoseconds(seconds: float) -> int:
    """Whole microseconds: what a float of today's date holds."""
    return round(seconds * 1e6) * 1000
