"""Topology on the wire: the two keys of ours, requirements and segments as the domain knows them.

All keys that we return have the one prefix the specification allows a plugin (csi.proto, Topology). Requirements may
also use Kubernetes' own key for the zone. A key that none of our nodes has is no mistake in the request: it is true
nowhere, so such a volume has no room (RESOURCE_EXHAUSTED) and such a segment no capacity.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.csi import TOPOLOGY_NODE, TOPOLOGY_ZONE
from agent.csi.pb import csi_pb2 as csi
from agent.errors import InvalidArgument, shorten
from agent.pools.topology import Requirement, Segment, node_label

KUBERNETES_ZONE = "topology.kubernetes.io/zone"


def of_node(node: str, zone: str = "") -> csi.Topology:
    """The topology of one node."""
    return csi.Topology(segments={TOPOLOGY_NODE: node_label(node)} | ({TOPOLOGY_ZONE: zone} if zone else {}))


def requirement(value: csi.TopologyRequirement) -> Requirement:
    """What CreateVolume's accessibility_requirements demand. Raises InvalidArgument for an empty key or value."""
    field = "accessibility_requirements"
    return Requirement(
        requisite=_segments(f"{field}.requisite", value.requisite),
        preferred=_segments(f"{field}.preferred", value.preferred),
    )


def segment(value: csi.Topology, field: str = "accessible_topology") -> Segment:
    """One term. Keys are case-insensitive (csi.proto). Raises InvalidArgument for an empty key or value."""
    node = zone = unknown = ""
    for key in sorted(value.segments):
        name = value.segments[key]
        if not key or not name:
            raise InvalidArgument(f"{field}[{shorten(key)!r}]", "empty key or value", "set both")
        match key.lower():
            case key_ if key_ == TOPOLOGY_NODE and node in ("", name):
                node = name
            case key_ if key_ in (TOPOLOGY_ZONE, KUBERNETES_ZONE) and zone in ("", name):
                zone = name
            case _:
                unknown = f"{key}={name}"
    return Segment(node, zone, unknown)


def _segments(field: str, values: Iterable[csi.Topology]) -> tuple[Segment, ...]:
    return tuple(segment(value, f"{field}[{index}]") for index, value in enumerate(values))
