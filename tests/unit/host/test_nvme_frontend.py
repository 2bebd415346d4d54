"""The NVMe/TCP frontend over the recorded tree and the stand-in of test_nvme_host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.errors import FailedPrecondition, Unavailable
from agent.model import Endpoint, Frontend, Meta, ReplicaStatus, Tier, Volume, VolumePhase, VolumeSpec, VolumeStatus
from agent.volumes.attach.frontends import NvmeTcpFrontend
from agent.volumes.attach.node import NodeVolumes

from .test_nvme_host import HOST_NQN, NQN, UUID, add_controller, add_namespace, calls, host, tree

__all__ = ["tree"]
NAME = "vol-0123456789abcdef0123456789abcdef"
REPLICA = ReplicaStatus("r0", True, UUID, Endpoint(NQN, "127.0.0.1", 4420))


def volume(*replicas: ReplicaStatus) -> Volume:
    return Volume(Meta(NAME), VolumeSpec("v", 64 << 20, Tier.SSD), VolumeStatus(VolumePhase.READY, 64 << 20, replicas))


async def test_there_and_back(tree: Path) -> None:
    add_controller(tree / "after", 2)
    add_namespace(tree / "after", 2)
    frontend = NvmeTcpFrontend(HOST_NQN, host(tree))
    assert await frontend.find(volume(REPLICA)) is None
    assert await frontend.known() == []
    for _ in range(2):
        assert await frontend.attach(volume(REPLICA)) == tree / "dev/nvme2n1"
    assert await frontend.find(volume(REPLICA)) == tree / "dev/nvme2n1"
    assert await frontend.known() == [NAME]
    await frontend.rescan(volume(REPLICA), tree / "dev/nvme2n1")
    for _ in range(2):
        await frontend.detach(NAME, None)
    assert await frontend.known() == []
    assert [call.split()[0].rpartition("/")[2] for call in calls(tree)] == [
        "nvme-fabrics",
        "rescan_controller",
        "delete_controller",
    ]


@pytest.mark.parametrize("record", [False, True], ids=["no record of it", "recorded, not published here"])
async def test_connections_of_another_agent_are_no_leftovers(tree: Path, record: bool) -> None:
    """Two agents on one machine (or one and the demo): the start of one must not cut what the other has mounted."""
    another = HOST_NQN.replace("0000", "9999")
    for number, (nqn, host_nqn) in enumerate(((NQN, another), (NQN.replace("0123", "4567", 1), HOST_NQN))):
        add_controller(tree, number, nqn)
        (tree / f"sys/class/nvme/nvme{number}/hostnqn").write_text(host_nqn + "\n")
    node = NodeVolumes(
        "node-a", [tree], {Frontend.NVME_TCP: NvmeTcpFrontend(HOST_NQN, host(tree))}, tree.parent / "notes"
    )
    released = await node.release_leftovers([volume(REPLICA)] if record else [])
    assert released == [NAME.replace("0123", "4567", 1)]
    assert calls(tree) == ["nvme1/delete_controller 1"]


async def test_device_is_found_while_the_target_is_away(tree: Path) -> None:
    add_controller(tree, 0, state="connecting")
    add_namespace(tree, 0)
    away = replace(REPLICA, ready=False, endpoint=None)
    assert await NvmeTcpFrontend(HOST_NQN, host(tree)).find(volume(away)) == tree / "dev/nvme0n1"


async def test_whose_a_device_is(tree: Path) -> None:
    """By the subsystem it is of, whatever other volume a call names; also while its target is away."""
    other = NQN.replace("0123", "4567", 1)
    for number, nqn in enumerate((NQN, other, "nqn.foreign")):
        add_controller(tree, number, nqn, state="connecting")
        add_namespace(tree, number, nqn)
    frontend = NvmeTcpFrontend(HOST_NQN, host(tree))
    wanted = [NAME, NAME.replace("0123", "4567", 1), None, None, None]
    names = ["nvme0n1", "nvme1n1", "nvme2n1", "nvme3n1", "sda"]
    assert [await frontend.whose(tree / "dev" / name, NAME) for name in names] == wanted
    assert await frontend.left(NAME) == tree / "dev/nvme0n1"
    assert await frontend.left("vol-" + 32 * "f") is await frontend.left("x") is None


async def test_what_cannot_be_attached(tree: Path) -> None:
    frontend = NvmeTcpFrontend(HOST_NQN, host(tree))
    for replicas in ((), (replace(REPLICA, ready=False),), (replace(REPLICA, endpoint=None),)):
        with pytest.raises(Unavailable):
            await frontend.attach(volume(*replicas))
    with pytest.raises(FailedPrecondition):
        await frontend.attach(volume(REPLICA, REPLICA))
    assert calls(tree) == []


@pytest.mark.parametrize("name", ["", "vol-1", "vol-" + "x" * 10_000, "../x", "nqn.other", NAME + "0"])
async def test_only_our_subsystems_are_disconnected(tree: Path, name: str) -> None:
    add_controller(tree, 0, nqn="nqn.other")
    await NvmeTcpFrontend(HOST_NQN, host(tree)).detach(name, None)
    assert calls(tree) == []
