"""`quarry controller`: decides for all nodes of a Kubernetes cluster, one of several at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from agent.cli import roles

if TYPE_CHECKING:
    from agent.config.settings import Settings


@click.command(short_help="Run the controller of a Kubernetes cluster.")
@roles.options(
    roles.CONFIG,
    *roles.IN_CLUSTER,
    click.option("--identity", metavar="NAME", help="Unique among the controllers [default: the host name]."),
    roles.CSI_ENDPOINT,
    roles.state_dir("that tells where HTTP is served; nothing is kept in it"),
    roles.HTTP_ADDRESS,
)
def controller(**flags: Any) -> None:
    """Run a controller of a Kubernetes cluster: the CSI Controller service, placement, deletion.

    Several may run: one leads, as the Lease quarry-controller says, the others wait. One that no longer leads ends.
    """
    roles.run(_controller, **flags)


def _controller(settings: Settings) -> roles.Role:
    from agent.daemon.controller import Controller

    return Controller(settings)
