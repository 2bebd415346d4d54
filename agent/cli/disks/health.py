"""The health of a disk for `quarry disks show`: asked now, or for a disk of the target what the agent heard last."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import QuarryError

if TYPE_CHECKING:
    from agent.disks.health import Assessment, Measures
    from agent.disks.inventory import Known


async def health_of(known: Known, state_dir: Path) -> tuple[Assessment, Measures | None]:
    """The verdict, and what it was made from, if the disk was asked now. Never fails: then it is unknown, and why."""
    from agent.disks.health import Assessment, assess, from_smartctl
    from agent.host import smartctl
    from agent.model import Health

    if known.status.bdev:
        return await _recorded(known, state_dir), None
    try:
        measures = from_smartctl(await smartctl.read(known.status.path))
    except QuarryError as error:
        return Assessment(Health.UNKNOWN, (str(error),)), None
    return assess(measures), measures


async def _recorded(known: Known, state_dir: Path) -> Assessment:
    from agent.disks.health import Assessment
    from agent.model import Disk, Health
    from agent.pools.disk_conditions import HEALTH
    from agent.store.local import open_local

    database = state_dir / "quarry.db"
    if not database.exists():
        return Assessment(Health.UNKNOWN, (f"the target drives it, and no agent runs on {state_dir} to ask it",))
    store = await open_local(database)
    try:
        disk = await store.get(Disk, known.identity)
    finally:
        await store.close()
    for each in disk.status.conditions if disk else ():
        if each.type == HEALTH:
            return Assessment(Health(each.reason), (each.message,) if each.reason != Health.HEALTHY else ())
    return Assessment(Health.UNKNOWN, ("the target drives it; the agent asks for it once it is claimed",))


def lines(assessment: Assessment, measures: Measures | None) -> list[str]:
    """For a person: the verdict, its reasons, and some figures."""
    found = [f"{assessment.health}: {reason}" for reason in assessment.reasons] or [assessment.health.value]
    figures = []
    if measures is not None:
        if measures.temperature_c is not None:
            figures.append(f"{measures.temperature_c} °C")
        if measures.percentage_used is not None:
            figures.append(f"{measures.percentage_used} % worn")
        if measures.power_on_hours is not None:
            figures.append(f"{measures.power_on_hours} hours on")
    return [*found, *([", ".join(figures)] if figures else [])]
