"""Whether a volume is well, and if not, what a person can do: computed from what is known, stored nowhere. Pure.

CSI calls it VolumeCondition: normal volumes are available for use and operating optimally.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.model import (
    Disk,
    DiskPhase,
    Provisioning,
    TargetState,
    Volume,
    VolumePhase,
)
from agent.pools.disk_conditions import IF_LOST, METADATA_FULL, attention, failing, told
from agent.pools.ledger import Ledger
from agent.pools.why import Why


@dataclass(frozen=True, slots=True)
class VolumeCondition:
    abnormal: bool
    message: str


HEALTHY = VolumeCondition(False, "the volume is available")


def condition(
    volume: Volume, target: TargetState, ledger: Ledger, disk: Disk | None, *, shares: bool = False
) -> VolumeCondition:
    """The worst that is known of `volume`, whose data are on `disk` (None: no record of it).

    `target` is the state of the target of the disk's node; `shares` whether the volume stands on a snapshot.
    """
    found = (
        _of_volume(volume)
        or _of_target(volume, target)
        or _of_disk(volume, ledger, disk)
        or _of_space(volume, ledger, disk, shares)
    )
    return VolumeCondition(True, found) if found else HEALTHY


def _of_volume(volume: Volume) -> str:
    if volume.status.phase is VolumePhase.FAILED:
        return f"the volume has failed: {volume.status.message}; restore it from a backup, or delete it"
    if not volume.status.replicas and not volume.meta.deleting:
        return "the volume has not been made yet; repeat CreateVolume, or delete it"
    return ""


def _of_target(volume: Volume, target: TargetState) -> str:
    if target is TargetState.READY:
        return ""
    node = ", ".join(sorted({each.node for each in volume.spec.placement}))
    return f"the target of node {node} is {target}: I/O waits until it serves again; see the log of the agent there"


def _of_disk(volume: Volume, ledger: Ledger, disk: Disk | None) -> str:
    name = _disk_of(volume)
    if name and ledger.pool(name) is not None:
        if disk and (wrong := attention(disk, Why.SHRUNK, Why.REMOVED)):
            return f"disk {name}, which holds the data: {wrong.message}"
        bad = failing(disk) if disk else None
        return f"disk {name}, which holds the data, is failing: {bad.message}" if bad else ""
    if disk is None:
        return f"nothing is known of disk {name}, which holds the data; bring it back and claim it"
    why = disk.status.message or ("it is missing" if disk.status.phase is DiskPhase.MISSING else "it is not ready")
    if disk.status.phase is DiskPhase.MISSING:
        why += f"; {IF_LOST.format(name)}"
    return f"disk {name} ({disk.status.path}), which holds the data, is {disk.status.phase}: {why}"


def _of_space(volume: Volume, ledger: Ledger, disk: Disk | None, shares: bool) -> str:
    pool = ledger.pool(_disk_of(volume))
    if pool is None or (volume.spec.provisioning is Provisioning.THICK and not shares):
        return ""  # a thick volume has its clusters, until a snapshot takes them over
    if disk and (full := told(disk, METADATA_FULL)):
        return full.message
    return ledger.shortage(pool)


def _disk_of(volume: Volume) -> str:
    return volume.spec.placement[0].disk if volume.spec.placement else ""
