"""`quarry controller`: decides for all nodes of a Kubernetes cluster, one of several at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from agent.cli.output import configure_logs, log_options

_PATH = click.Path(path_type=Path)


@click.command(short_help="Run the controller of a Kubernetes cluster.")
@click.option("--config", type=_PATH, metavar="FILE", help="YAML settings; flags win over the file.")
@click.option("--kubeconfig", type=_PATH, metavar="FILE", help="The cluster [default: the Pod's ServiceAccount].")
@click.option("--lease-namespace", metavar="NAME", help="Where Leases are [default: the Pod's, else quarry-system].")
@click.option("--identity", metavar="NAME", help="Unique among the controllers [default: the host name].")
@click.option("--csi-endpoint", metavar="unix:///PATH", help="Where CSI is served [default: STATE_DIR/csi.sock].")
@click.option(
    "--state-dir",
    type=_PATH,
    metavar="DIR",
    help="Folder that tells where HTTP is served; nothing is kept in it [default: /var/lib/quarry].",
)
@click.option(
    "--http-address",
    metavar="ADDR:PORT",
    help="Where health, metrics and resources are served [default: 127.0.0.1:0, any free port; empty: nowhere].",
)
@log_options(None)
def controller(log_level: str | None, log_format: str | None, config: Path | None, **flags: Any) -> None:
    """Run a controller of a Kubernetes cluster: the CSI Controller service, placement, deletion.

    Several may run: one leads, as the Lease quarry-controller says, the others wait. One that no longer leads ends.
    """
    configure_logs(log_level, log_format)
    from agent.config import load_settings
    from agent.csi.tuning import tune

    tune()

    settings = load_settings(config, **flags)
    configure_logs(log_level or settings.log.level, log_format or settings.log.format)
    from agent.daemon.controller import Controller
    from agent.host.event_loop import run

    run(Controller(settings).run_until_signal())
