"""Frontends that a node does not offer: not placed there, not published there, and the remedy is named."""

from __future__ import annotations

import pytest

from agent.errors import FailedPrecondition
from agent.model import Frontend, Meta, Provisioning, StorageNode, StorageNodeStatus, Tier, Volume, VolumeSpec
from agent.volumes.rules.offers import require_offered, unfit


def node(name: str, *frontends: Frontend, mode: str = "") -> StorageNode:
    return StorageNode(Meta(name), status=StorageNodeStatus(frontends=frontends, target_mode=mode))


def volume(frontend: Frontend) -> Volume:
    return Volume(
        Meta("v"), VolumeSpec("pvc", size_bytes=1, tier=Tier.SSD, provisioning=Provisioning.THIN, frontend=frontend)
    )


SLEEPS = node("sleeps", Frontend.NVME_TCP, mode="interrupt")
POLLS = node("polls", Frontend.NVME_TCP, Frontend.UBLK, mode="polling")
SILENT = node("silent")


def test_volumes_are_kept_off_nodes_where_they_could_not_be_used() -> None:
    nodes = [SLEEPS, POLLS, SILENT]
    assert unfit(nodes, Frontend.UBLK) == {"sleeps"}
    assert unfit(nodes, Frontend.LOOP) == {"sleeps", "polls"}
    assert unfit(nodes, Frontend.NVME_TCP) == set()


def test_publishing_to_such_a_node_names_the_remedy() -> None:
    with pytest.raises(FailedPrecondition, match=r"interrupt mode\), but nvme-tcp: ublk takes spdk_tgt"):
        require_offered(SLEEPS, volume(Frontend.UBLK))
    for other in (POLLS, SILENT):
        require_offered(other, volume(Frontend.UBLK))
    require_offered(SLEEPS, volume(Frontend.NVME_TCP))
