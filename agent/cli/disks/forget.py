"""`quarry disks forget`: a disk that is lost for good is given up, with everything that lay on it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.disks.binding import state_dir_option
from agent.cli.disks.claims import require_agent, timeout_option
from agent.cli.output import configure_logs, log_options, output_option, print_json
from agent.errors import InvalidArgument

if TYPE_CHECKING:
    from agent.model import Disk
    from agent.volumes.keepers.forgetting import Losses

_SHOWN_MAX = 20


@click.command(short_help="Give up a disk that is lost for good.")
@click.argument("name", metavar="DISK")
@click.option("--yes", is_flag=True, help="Do not ask.")
@state_dir_option
@timeout_option
@output_option
@log_options("warning")
def forget(name: str, yes: bool, state_dir: Path, timeout_s: float, output: str, **logging: str | None) -> None:
    """Give up DISK, which is lost for good: WHAT LAY ON IT IS LOST. In a cluster: kubectl delete disk.

    For disks that are Missing or Failed (a dead disk, a file that is gone, a pool that is not there any more). Its
    volumes and snapshots become Failed and can be deleted. The disk itself is not touched: where it is still in the
    machine, what lies on it stays there.
    """
    configure_logs(logging["log_level"], logging["log_format"])
    import asyncio

    from agent.pools.claiming import find_disk
    from agent.store.local import open_local
    from agent.volumes.keepers.forgetting import Forgetting, require_forgettable

    def report(left: int) -> None:
        click.echo(f"{left} volumes and snapshots left to be given up", err=output == "json")

    async def run() -> tuple[Disk, Losses]:
        store = await open_local(state_dir / "quarry.db")
        try:
            disk = await find_disk(store, name)
            require_forgettable(disk)
            forgetting = Forgetting(store, report, timeout_s)
            losses = await forgetting.losses(disk)
            _tell(disk, losses, to_stderr=output == "json")
            if not yes:
                _ask()
            await forgetting.forget(disk)
            return disk, losses
        finally:
            await store.close()

    require_agent(state_dir)
    disk, losses = asyncio.run(run())
    if output == "json":
        print_json(_document(disk, losses))
    else:
        click.echo(f"disk {disk.meta.name} is forgotten: what lay there has failed and can be deleted")


def _ask() -> None:
    if not sys.stdin.isatty():
        raise InvalidArgument("--yes", "is not given, and there is nobody to ask", "give it to forget the disk")
    click.confirm("All this is lost. Go on?", abort=True)


def _tell(disk: Disk, losses: Losses, *, to_stderr: bool) -> None:
    from agent.cli.tables import size

    status = disk.status
    click.echo(f"{status.path}  {size(status.size_bytes)}  {disk.meta.name}  {status.phase}", err=to_stderr)
    volumes = [f"{each.meta.name} ({each.spec.csi_name or '-'})" for each in losses.volumes]
    for what, names in (("volumes", volumes), ("snapshots", [each.meta.name for each in losses.snapshots])):
        some = ": " + ", ".join(names[:_SHOWN_MAX]) + (", ..." if len(names) > _SHOWN_MAX else "") if names else ""
        click.echo(f"{len(names)} {what} lie there{some}", err=to_stderr)


def _document(disk: Disk, losses: Losses) -> dict[str, Any]:
    return {
        "id": disk.meta.name,
        "path": disk.status.path,
        "volumes": [each.meta.name for each in losses.volumes],
        "snapshots": [each.meta.name for each in losses.snapshots],
    }
