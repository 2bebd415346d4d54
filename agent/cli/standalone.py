"""`quarry standalone`: runs controller and node in one process on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from agent.cli import roles

if TYPE_CHECKING:
    from agent.config.settings import Settings


@click.command(short_help="Run controller and node on this machine.")
@roles.options(
    roles.CONFIG,
    roles.state_dir("of the database and of the embedded target"),
    roles.CSI_ENDPOINT,
    *roles.WITH_TARGET,
    roles.HTTP_ADDRESS,
    roles.MOUNT_ROOTS,
)
def standalone(**flags: Any) -> None:
    """Run the whole of Quarry on this machine: CSI controller and node over one SPDK target.

    Its database is a file in the state folder. Ends on SIGTERM or Ctrl-C, leaving volumes and their exports in place
    when the target is not ours.
    """
    roles.run(_standalone, **flags)


def _standalone(settings: Settings) -> roles.Role:
    from agent.daemon.standalone import Standalone

    return Standalone(settings)
