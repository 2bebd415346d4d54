"""Which nodes offer which frontends: it depends on the node's kernel and on what its target is."""

from __future__ import annotations

from collections.abc import Iterable

from agent.errors import FailedPrecondition
from agent.model import Frontend, StorageNode, Volume

_INSTEAD = {
    Frontend.UBLK: "ublk takes spdk_tgt, which polls, and the kernel's module ublk_drv",
    Frontend.LOOP: "loop is the embedded target's",
}


def offers(node: StorageNode, frontend: Frontend) -> bool:
    """Whether volumes can be used on `node` by `frontend`. One that has not told yet is believed to."""
    return not node.status.frontends or frontend in node.status.frontends


def unfit(nodes: Iterable[StorageNode], frontend: Frontend) -> frozenset[str]:
    """The nodes whose disks cannot take a volume of that frontend, since it is used where its data are."""
    if frontend is Frontend.NVME_TCP:
        return frozenset()
    return frozenset(each.meta.name for each in nodes if not offers(each, frontend))


def require_offered(node: StorageNode, volume: Volume) -> None:
    """Raise FailedPrecondition when `volume` cannot be used on `node`."""
    frontend = volume.spec.frontend
    if not offers(node, frontend):
        mode = f" (its target is in {node.status.target_mode} mode)" if node.status.target_mode else ""
        why = _INSTEAD.get(frontend, "see `quarry doctor` there")
        raise FailedPrecondition(
            f"node {node.meta.name} does not offer the frontend {frontend}{mode}, but "
            f"{', '.join(node.status.frontends)}: {why}; use a StorageClass with nvme-tcp"
        )
