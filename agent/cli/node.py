"""`quarry node`: the agent of one node of a Kubernetes cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from agent.cli import roles

if TYPE_CHECKING:
    from agent.config.settings import Settings


@click.command(short_help="Run the agent of a node of a Kubernetes cluster.")
@roles.options(
    roles.CONFIG,
    *roles.IN_CLUSTER,
    roles.state_dir("of journals and of the embedded target"),
    roles.CSI_ENDPOINT,
    *roles.WITH_TARGET,
    roles.HTTP_ADDRESS,
    roles.MOUNT_ROOTS,
)
def node(**flags: Any) -> None:
    """Run the agent of a node of a Kubernetes cluster: its disks, its volumes, and the CSI Node service.

    What is desired and observed are custom resources of the cluster. Ends on SIGTERM or Ctrl-C, leaving volumes and
    their exports in place when the target is not ours.
    """
    roles.run(_node, **flags)


def _node(settings: Settings) -> roles.Role:
    from agent.daemon.node import NodeAgent

    return NodeAgent(settings)
