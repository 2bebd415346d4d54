"""`quarry nodes forget`: what lay on a node that is gone for good is given up, on record, by the `kubectl` of who asks.

In this order: the node's record, the records of its disks. The controller that leads then gives up volumes and
snapshots that lay there, and their deletion waits for nobody. Can be repeated; a part that is done is passed over.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

from agent.cli.output import configure_logs, log_options
from agent.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound

POLL_S = 1.0
RESOURCE = "{}.quarry.storage"


@dataclass(frozen=True, slots=True)
class Lost:
    """What a node is the only one to have, by name."""

    disks: Sequence[str]
    volumes: Sequence[str]
    snapshots: Sequence[str]


@click.command(short_help="Give up a node that is gone for good.")
@click.argument("name", metavar="NODE")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--context", metavar="NAME", help="Context of the kubeconfig.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=1),
    default=180.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the controller.",
)
@log_options("warning")
def forget(
    name: str, yes: bool, context: str | None, timeout_s: float, log_level: str | None, log_format: str | None
) -> None:
    """Give up NODE, which is gone for good, and everything that lies on it: ITS DATA ARE LOST.

    The machine has to be off and to stay off: what it still serves nobody can take from it. Volumes that lay there
    become Failed and can be unpublished and deleted; the node's records go. Uses kubectl, with your permissions.
    """
    configure_logs(log_level, log_format)
    from agent.cli.kubectl import Kubectl

    cluster = Kubectl("", context)
    node = cluster.find(RESOURCE.format("storagenodes"), name)
    lost = _lost(cluster, name)
    if node is None and not any((lost.disks, lost.volumes, lost.snapshots)):
        raise NotFound("node", name)
    if node is not None:
        _require_dead(name, node)
    _tell(name, lost)
    if not yes:
        if not sys.stdin.isatty():
            raise InvalidArgument("--yes", "is not given, and there is nobody to ask", "give it to forget the node")
        click.confirm("All this is lost. Go on?", abort=True)
    cluster.delete(RESOURCE.format("storagenodes"), [name])
    cluster.delete(RESOURCE.format("disks"), lost.disks)
    _follow(cluster, name, timeout_s)
    click.echo(f"node {name} is forgotten: what lay there has failed and can be deleted")


def _require_dead(name: str, node: dict[str, Any]) -> None:
    alive = next((each for each in node.get("status", {}).get("conditions", ()) if each["type"] == "Alive"), None)
    if alive is None or alive["status"] != "False":
        said = f": {alive['message']}" if alive else ""
        raise FailedPrecondition(
            f"node {name} is not known to be dead{said}. Switch the machine off, then wait until `kubectl get "
            f"storagenode {name}` says False under ALIVE (about 35 s)"
        )


def _lost(cluster: Any, name: str) -> Lost:
    disks = [each for each in cluster.all(RESOURCE.format("disks")) if each.get("status", {}).get("node") == name]
    volumes = [
        each
        for each in cluster.all(RESOURCE.format("volumes"))
        if any(place["node"] == name for place in each["spec"].get("placement", ()))
    ]
    snapshots = [each for each in cluster.all(RESOURCE.format("snapshots")) if each["spec"].get("node") == name]
    return Lost(*([each["metadata"]["name"] for each in found] for found in (disks, volumes, snapshots)))


def _tell(name: str, lost: Lost) -> None:
    for what, names in (("disks", lost.disks), ("volumes", lost.volumes), ("snapshots", lost.snapshots)):
        some = ": " + ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") if names else ""
        click.echo(f"{len(names)} {what} of node {name}{some}")


def _follow(cluster: Any, name: str, timeout_s: float) -> None:
    deadline, told = time.monotonic() + timeout_s, -1
    while True:
        left = _lost(cluster, name)
        count = len(left.volumes) + len(left.snapshots)
        if not count:
            return
        if count != told:
            click.echo(f"{count} volumes and snapshots left to be given up")
            told = count
        if time.monotonic() > deadline:
            raise DeadlineExceeded(
                f"{count} volumes and snapshots are not given up after {timeout_s:g} s: see that a controller leads "
                "(`kubectl get lease -n quarry-system quarry-controller`); it goes on"
            )
        time.sleep(POLL_S)
