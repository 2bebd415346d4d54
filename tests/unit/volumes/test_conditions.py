"""The worst that is known of a volume, in words that say what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.model import (
    Disk,
    DiskPhase,
    DiskStatus,
    Meta,
    Provisioning,
    Replica,
    ReplicaStatus,
    TargetState,
    Tier,
    Volume,
    VolumePhase,
    VolumeSpec,
    VolumeStatus,
)
from agent.pools.ledger import Ledger, Pool
from agent.pools.space import Thresholds
from agent.volumes.rules.conditions import HEALTHY, condition

GIB = 1 << 30
MIB = 1 << 20
VOLUME = Volume(
    Meta("vol-1"),
    VolumeSpec("v", GIB, Tier.SSD, placement=(Replica("r0", "n1", "d1"),)),
    VolumeStatus(VolumePhase.READY, GIB, (ReplicaStatus("r0", ready=True),)),
)
THICK = replace(VOLUME, spec=replace(VOLUME.spec, provisioning=Provisioning.THICK))
DISK = Disk(Meta("d1"), status=DiskStatus(node="n1", path="/dev/d1", phase=DiskPhase.READY))


def ledger(free_bytes: int = GIB) -> Ledger:
    made = Ledger(2.0, Thresholds(warning=0.5, reserve=0.25))
    made.set_pool(Pool("d1", "n1", Tier.SSD, GIB, free_bytes, MIB))
    return made


def test_a_volume_that_is_well() -> None:
    assert condition(VOLUME, TargetState.READY, ledger(), DISK) == HEALTHY
    assert not HEALTHY.abnormal and HEALTHY.message


@pytest.mark.parametrize(
    ("free_bytes", "words"),
    [(500 * MIB, "nearly full (500 of"), (200 * MIB, "takes no new volumes"), (0, "writes to thin volumes fail")],
)
def test_a_pool_short_of_space_concerns_its_thin_volumes(free_bytes: int, words: str) -> None:
    found = condition(VOLUME, TargetState.READY, ledger(free_bytes), DISK)
    assert found.abnormal
    assert words in found.message and "delete snapshots or volumes" in found.message
    assert condition(THICK, TargetState.READY, ledger(free_bytes), DISK) == HEALTHY
    assert condition(THICK, TargetState.READY, ledger(free_bytes), DISK, shares=True) == found


@pytest.mark.parametrize("state", sorted(set(TargetState) - {TargetState.READY}))
def test_a_target_that_does_not_serve(state: TargetState) -> None:
    found = condition(VOLUME, state, ledger(), DISK)
    assert found.abnormal
    assert f"target of node n1 is {state}" in found.message


@pytest.mark.parametrize(
    ("disk", "words"),
    [
        (None, "nothing is known of disk d1"),
        (replace(DISK, status=replace(DISK.status, phase=DiskPhase.MISSING, message="away")), "Missing: away"),
        (replace(DISK, status=replace(DISK.status, phase=DiskPhase.FAILED, message="I/O error")), "Failed: I/O error"),
    ],
)
def test_a_disk_that_is_not_ready(disk: Disk | None, words: str) -> None:
    pools = ledger()
    pools.remove_pool("d1")
    found = condition(THICK, TargetState.READY, pools, disk)
    assert found.abnormal
    assert words in found.message


def test_a_volume_whose_data_are_lost_or_were_never_there() -> None:
    status = replace(VOLUME.status, phase=VolumePhase.FAILED, message="its data are gone")
    lost = condition(replace(VOLUME, status=status), TargetState.UNREACHABLE, ledger(0), DISK)
    assert lost.abnormal and "its data are gone; restore" in lost.message
    begun = condition(replace(VOLUME, status=VolumeStatus()), TargetState.READY, ledger(), DISK)
    assert begun.abnormal and "repeat CreateVolume" in begun.message
    going = replace(VOLUME, status=VolumeStatus(), meta=replace(VOLUME.meta, deleting=True))
    assert condition(going, TargetState.READY, ledger(), DISK) == HEALTHY
