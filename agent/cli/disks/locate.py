"""`quarry disks locate`: the light at a disk's slot, for whoever goes to pull it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.disks.binding import is_meant, state_dir_option
from agent.cli.output import configure_logs, log_options
from agent.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from agent.disks.inventory import Known


@click.command(short_help="Switch on the light at a disk's slot.")
@click.argument("disk")
@click.option("--off", is_flag=True, help="Switch it off.")
@click.option("--for", "seconds", type=click.FloatRange(min=0), metavar="SECONDS", help="Switch it off again after.")
@state_dir_option
@log_options("warning")
def locate(disk: str, off: bool, seconds: float | None, state_dir: Path, **logging: str | None) -> None:
    """Switch on the locate light of DISK (a name, path, identity or serial number), where the enclosure has one."""
    configure_logs(logging["log_level"], logging["log_format"])
    if off and seconds is not None:
        raise InvalidArgument("--for", "makes no sense with --off")
    import asyncio

    asyncio.run(_locate(disk, off, seconds, state_dir))


async def _locate(disk: str, off: bool, seconds: float | None, state_dir: Path) -> None:
    import asyncio

    from agent.disks import locate as lights

    known = await _find(disk, state_dir)
    name = "" if known.status.bdev else known.name

    async def switch(on: bool) -> str:
        return await lights.locate(name, known.status.path, known.status.pci_addresses, on=on)

    by = await switch(not off)
    click.echo(f"{known.status.path}: light {'off' if off else 'on'} ({by})")
    if seconds is None:
        return
    try:
        await asyncio.sleep(seconds)
    finally:  # also on Ctrl-C
        await switch(False)
        click.echo(f"{known.status.path}: light off")


async def _find(wanted: str, state_dir: Path) -> Known:
    from agent.disks.binder import FOLDER, Binder, away
    from agent.disks.inventory import Inventory
    from agent.disks.machine import Machine

    inventory = Inventory(Machine())
    await inventory.scan()
    gone = away(Binder(state_dir / FOLDER, inventory).bindings())
    found = [each for each in (*inventory.known.values(), *gone.values()) if is_meant(wanted, each)]
    if not found:
        raise NotFound("disk", wanted)
    if len({each.status.pci_addresses or each.name for each in found}) > 1:
        raise InvalidArgument("DISK", f"{wanted!r} fits {', '.join(each.name for each in found)}", "give one")
    return found[0]
