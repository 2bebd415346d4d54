"""Where volumes may be and from where they can be reached: segments of the cluster, requirements on them. Pure, no I/O.

CSI section "Topology": a term is true where all its segments are; one of the requisite terms has to be, the preferred
ones say in which order to try.
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass

from agent.errors import shorten
from agent.model import Endpoint, Frontend, Volume

_LABEL_MAX, _NODE_ID_MAX = 63, 192
"""Bytes of a topology value, which becomes a label of a Kubernetes Node; of a node id in a CSINode."""


def node_label(node: str) -> str:
    """The node's name as the value of a topology key: a long one is shortened, with a hash of all of it."""
    if len(node) <= _LABEL_MAX:
        return node
    return f"{node[:46]}-{hashlib.sha256(node.encode()).hexdigest()[:16]}"


def node_id(node: str) -> str:
    """What CSI calls the node: its name, if Kubernetes has room for that."""
    return node if len(node) <= _NODE_ID_MAX else node_label(node)


@dataclass(frozen=True, slots=True)
class Segment:
    """One topology term; what is empty matches anything.

    `unknown` is a `key=value` that none of our nodes has: the term is true nowhere.
    """

    node: str = ""
    zone: str = ""
    unknown: str = ""

    def has(self, node: str, zone: str) -> bool:
        """Whether `node`, which is in `zone`, is in this segment."""
        return not self.unknown and self.node in ("", node, node_label(node)) and self.zone in ("", zone)

    def __str__(self) -> str:
        parts = [f"node {self.node}"] if self.node else []
        parts += [f"zone {self.zone}"] if self.zone else []
        parts += [f"{shorten(self.unknown)} (no node here has this key)"] if self.unknown else []
        return ", ".join(parts) or "anywhere"


EVERYWHERE = Segment()


@dataclass(frozen=True, slots=True)
class Requirement:
    """Where a volume has to be, and where it had better be. `requisite` empty: anywhere."""

    requisite: tuple[Segment, ...] = ()
    preferred: tuple[Segment, ...] = ()

    def allows(self, node: str, zone: str) -> bool:
        """Whether a volume may be on `node`, which is in `zone`."""
        return not self.requisite or any(each.has(node, zone) for each in self.requisite)

    def rank(self, node: str, zone: str) -> int:
        """Place of a node in the order of preference: 0 is tried first."""
        return next((i for i, each in enumerate(self.preferred) if each.has(node, zone)), len(self.preferred))

    def __str__(self) -> str:
        return " or ".join(str(each) for each in self.requisite[:5]) + (" or ..." if len(self.requisite) > 5 else "")


ANYWHERE = Requirement()


def bound_to(volume: Volume) -> list[str]:
    """Nodes outside of which the volume cannot be used; empty when every node reaches it over the network."""
    endpoints = [replica.endpoint for replica in volume.status.replicas]
    if volume.spec.frontend is Frontend.NVME_TCP and endpoints and all(map(_is_remote, endpoints)):
        return []
    return sorted({replica.node for replica in volume.spec.placement})


def _is_remote(endpoint: Endpoint | None) -> bool:
    """Whether other machines can connect to it; a name that is no address is believed."""
    if endpoint is None:
        return False
    try:
        return not ipaddress.ip_address(endpoint.address).is_loopback
    except ValueError:
        return endpoint.address != "localhost"
