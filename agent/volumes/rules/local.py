"""What volumes that only their own node can attach (ublk, loop) do not allow."""

from __future__ import annotations

from agent.errors import FailedPrecondition
from agent.model import Frontend, Volume


def require_reachable(volume: Volume, node: str) -> None:
    """FailedPrecondition unless `node` can attach the volume."""
    nodes, how = [each.node for each in volume.spec.placement], volume.spec.frontend
    if how.is_local and node not in nodes:
        raise FailedPrecondition(f"volume {volume.meta.name} is attached by {how}: on {', '.join(nodes)} only")


def require_growable(volume: Volume) -> None:
    """FailedPrecondition while a device that cannot grow may be in use (CSI: "volume in use", expanded offline)."""
    if volume.spec.frontend is Frontend.UBLK and volume.spec.attachments:
        raise FailedPrecondition(
            f"volume {volume.meta.name} is published, and a ublk device keeps its size: unpublish it to expand it"
        )
