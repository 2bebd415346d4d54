"""`quarry node`: the agent of one node of a Kubernetes cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from agent.cli.output import configure_logs, log_options

_PATH = click.Path(path_type=Path)


@click.command(short_help="Run the agent of a node of a Kubernetes cluster.")
@click.option("--config", type=_PATH, metavar="FILE", help="YAML settings; flags win over the file.")
@click.option("--kubeconfig", type=_PATH, metavar="FILE", help="The cluster [default: the Pod's ServiceAccount].")
@click.option("--lease-namespace", metavar="NAME", help="Where Leases are [default: the Pod's, else quarry-system].")
@click.option(
    "--state-dir",
    type=_PATH,
    metavar="DIR",
    help="Folder of journals and of the embedded target [default: /var/lib/quarry].",
)
@click.option("--csi-endpoint", metavar="unix:///PATH", help="Where CSI is served [default: STATE_DIR/csi.sock].")
@click.option(
    "--spdk-socket",
    type=_PATH,
    metavar="PATH",
    help="JSON-RPC socket of a running SPDK target; without it the embedded target is started.",
)
@click.option(
    "--file-disk",
    "file_disks",
    multiple=True,
    metavar="PATH:SIZE:TIER",
    help="A regular file as a disk, like /srv/d0:20GiB:nvme (tiers: nvme, ssd, hdd); created sparse when missing. "
    "Repeatable.",
)
@click.option("--node-name", metavar="NAME", help="Name of this node [default: the host name].")
@click.option("--zone", metavar="NAME", help="Rack, room or cloud zone of this node [default: none].")
@click.option("--nvmf-address", metavar="ADDR", help="Address volumes are exported on [default: 127.0.0.1].")
@click.option("--nvmf-port", type=click.IntRange(1, 65535), metavar="PORT", help="Port of the same [default: 4420].")
@click.option(
    "--http-address",
    metavar="ADDR:PORT",
    help="Where health, metrics and resources are served [default: 127.0.0.1:0, any free port; empty: nowhere].",
)
@click.option(
    "--mount-root",
    "mount_roots",
    type=_PATH,
    multiple=True,
    metavar="DIR",
    help="Folder under which CSI may mount [default: /var/lib/kubelet and STATE_DIR/csi]. Repeatable.",
)
@log_options(None)
def node(log_level: str | None, log_format: str | None, config: Path | None, **flags: Any) -> None:
    """Run the agent of a node of a Kubernetes cluster: its disks, its volumes, and the CSI Node service.

    What is desired and observed are custom resources of the cluster. Ends on SIGTERM or Ctrl-C, leaving volumes and
    their exports in place when the target is not ours.
    """
    configure_logs(log_level, log_format)
    from agent.config import load_settings
    from agent.csi.tuning import tune

    tune()

    settings = load_settings(config, **flags)
    configure_logs(log_level or settings.log.level, log_format or settings.log.format)
    from agent.daemon.node import NodeAgent
    from agent.host.event_loop import run

    run(NodeAgent(settings).run_until_signal())
