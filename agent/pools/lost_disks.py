"""Disks that are lost for good: a person has said so by deleting the record, and what lay on them is given up.

Absence by itself proves nothing: a disk that is Missing, or does not carry its pool, may be put right. So volumes wait
for it until its record goes (`quarry disks forget`, `kubectl delete disk`). From then on those that lay there have
failed and can be deleted. If the disk comes back all the same and is claimed, they are found again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from agent.disks import files
from agent.model import Disk, DiskPhase, Volume, VolumePhase, VolumeStatus
from agent.store.interface import Store


class LostDisks:
    """`is_here`: whether the machine has the disk of that identity; None while its disks are not known."""

    def __init__(self, store: Store, is_here: Callable[[str], bool | None]) -> None:
        self._store = store
        self._is_here = is_here

    async def why(self, name: str) -> str:
        """Why the data on a disk whose pool is not served are lost; empty: they may be there again."""
        disk = await self._store.get(Disk, name)
        if disk is None:
            is_known = files.is_disk_id(name) or self._is_here(name) is False
            return f"disk {name}, on which they lay, was forgotten" if is_known else ""
        if disk.status.pool.uuid or not _has_settled(disk):
            return ""
        return f"disk {name} ({disk.status.path}), on which they lay, was forgotten; it has no pool"


def _has_settled(disk: Disk) -> bool:
    """Whether no pool is on its way there."""
    if disk.spec.claimed:
        return disk.status.phase is DiskPhase.FAILED
    return disk.status.phase in (DiskPhase.AVAILABLE, DiskPhase.INELIGIBLE, DiskPhase.MISSING)


def failed(volume: Volume, why: str) -> VolumeStatus:
    """The status of a volume whose disk is lost."""
    return replace(
        volume.status,
        phase=VolumePhase.FAILED,
        message=f"its data are lost: {why}",
        replicas=tuple(replace(each, ready=False) for each in volume.status.replicas),
        observed=volume.meta.generation,
        failure=None,
    )
