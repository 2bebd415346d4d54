"""What the agent of this machine has on record of its disks, beside what a look at them shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.errors import QuarryError

if TYPE_CHECKING:
    from agent.disks.inventory import Known
    from agent.model import Disk


def records(state_dir: Path) -> list[Disk]:
    """The Disks in the database of `state_dir`; none when there is no database, or none that can be read."""
    import asyncio
    import os

    database = state_dir / "quarry.db"
    if not os.access(database, os.R_OK | os.W_OK):
        return []

    async def read() -> list[Disk]:
        from agent.model import Disk
        from agent.store.local import open_local

        store = await open_local(database)
        try:
            return await store.list(Disk)
        finally:
            await store.close()

    try:
        return asyncio.run(read())
    except QuarryError as error:
        click.echo(f"quarry: not seen: what the agent made of the disks: {error}", err=True)
        return []


def volumes_shown(state_dir: Path) -> dict[str, str]:
    """The volumes that the agent of `state_dir` shows as devices of this machine, by the devices' kernel names."""
    from agent.volumes.attach.ublk import noted_devices

    try:
        return noted_devices(state_dir / "node" / "ublk")
    except PermissionError:
        return {}


def joined(known: Mapping[str, Known], disks: Iterable[Disk]) -> list[tuple[Known, Disk | None]]:
    """Each disk seen with its record, then those on record that are not seen, named `-`."""
    from agent.disks.inventory import Known
    from agent.model import DiskPhase

    by_name = {disk.meta.name: disk for disk in disks}
    by_path = {disk.status.path: disk for disk in by_name.values() if disk.status.phase is not DiskPhase.MISSING}
    pairs: list[tuple[Known, Disk | None]] = []
    for each in known.values():
        disk = by_name.get(each.identity) if each.identity else by_path.get(each.status.path)
        pairs.append((each, disk if disk is not None and not each.twins else None))
    seen = {disk.meta.name for _, disk in pairs if disk is not None}
    away = [disk for name, disk in by_name.items() if name not in seen and disk.status.transport != "file"]
    shown = [
        (replace(each, status=replace(each.status, tier=disk.tier)) if disk else each, disk) for each, disk in pairs
    ]
    return [*shown, *((Known("-", disk.meta.name, replace(disk.status, tier=disk.tier)), disk) for disk in away)]


def document(disk: Disk | None) -> dict[str, Any]:
    """For a program: what is wanted of the disk and what became of it; nothing without a record."""
    import msgspec

    if disk is None:
        return {}
    status = disk.status
    return {
        "claimed": disk.spec.claimed,
        "tier_override": disk.spec.tier_override,
        "phase": status.phase.value,
        "message": status.message,
        "pool": msgspec.to_builtins(status.pool) if status.pool.uuid else None,
        "conditions": msgspec.to_builtins(status.conditions),
    }


def state(disk: Disk | None) -> str:
    """The phase, and how far its zeroing is while that goes on: `Ready, 31 %`."""
    if disk is None:
        return "-"
    told = zeroing((each.type, each.message) for each in disk.status.conditions) or disk.status.message
    percent, colon, _ = told.partition(":")
    return f"{disk.status.phase}, {percent}" if colon and percent.endswith(" %") else disk.status.phase.value


def zeroing(conditions: Iterable[tuple[str, str]]) -> str:
    """How far the zeroing of free space is, of (type, message) of a Disk's conditions; empty when none goes on."""
    return next((message for kind, message in conditions if kind == "FreeSpaceZeroed"), "")


def lines(disk: Disk | None) -> Iterable[tuple[str, list[str]]]:
    """The same for a person."""
    from agent.cli.tables import size

    if disk is None:
        return
    pool, own = disk.status.pool, disk.status.tier
    wanted = {True: "claimed", False: "released", None: "not claimed"}[disk.spec.claimed]
    yield "state", [f"{disk.status.phase}, {wanted}", *([disk.status.message] if disk.status.message else [])]
    if disk.spec.tier_override is not None:
        yield "tier given", [f"{disk.spec.tier_override} (its own: {own})"]
    if pool.uuid:
        yield "pool", [f"{size(pool.size_bytes)}, {size(pool.free_bytes)} free when last recorded", pool.uuid]
    yield "conditions", [f"{each.type} {each.status}: {each.message}" for each in disk.status.conditions]
