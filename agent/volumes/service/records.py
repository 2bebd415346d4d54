"""Volumes as they are on record, and settled: what every operation begins and ends with."""

from __future__ import annotations

from dataclasses import replace

from agent.errors import FailedPrecondition, NotFound
from agent.model import Volume, VolumePhase
from agent.store.interface import Store
from agent.volumes.rules.names import is_volume_id
from agent.volumes.rules.settling import Settler


async def find(store: Store, volume_id: str) -> Volume | None:
    """The volume, also one that is being deleted."""
    return await store.get(Volume, volume_id) if is_volume_id(volume_id) else None


async def existing(store: Store, volume_id: str) -> Volume:
    """A volume that is not being deleted. Raises NotFound."""
    volume = await find(store, volume_id)
    if volume is None or volume.meta.deleting:
        raise NotFound("volume", volume_id)
    return volume


async def settled(settler: Settler, volume: Volume) -> Volume:
    """The volume once it is as recorded. Raises NotFound when it is gone, FailedPrecondition when its data are."""
    found = await settler.settle(volume)
    if found is None:
        raise NotFound("volume", volume.meta.name)
    if found.status.phase is VolumePhase.FAILED:
        raise FailedPrecondition(f"volume {volume.meta.name} has failed: {found.status.message}")
    return found


async def marked_deleting(store: Store, volume: Volume) -> Volume:
    """The volume once it is recorded that it is to go."""
    if volume.meta.deleting:
        return volume
    return await store.update(replace(volume, meta=replace(volume.meta, deleting=True)))
