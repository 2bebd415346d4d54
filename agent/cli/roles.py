"""What `quarry standalone`, `quarry node` and `quarry controller` share: their flags, and how they are run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from agent.cli.output import configure_logs, log_options
from agent.cli.paths import PATH

if TYPE_CHECKING:
    from agent.config.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

_PATH = PATH

CONFIG = click.option("--config", type=_PATH, metavar="FILE", help="YAML settings; flags win over the file.")

IN_CLUSTER = (
    click.option("--kubeconfig", type=_PATH, metavar="FILE", help="The cluster [default: the Pod's ServiceAccount]."),
    click.option(
        "--lease-namespace", metavar="NAME", help="Where Leases are [default: the Pod's, else quarry-system]."
    ),
)

CSI_ENDPOINT = click.option(
    "--csi-endpoint", metavar="unix:///PATH", help="Where CSI is served [default: STATE_DIR/csi.sock]."
)

HTTP_ADDRESS = click.option(
    "--http-address",
    metavar="ADDR:PORT",
    help="Where health, metrics and resources are served [default: 127.0.0.1:0, any free port; empty: nowhere].",
)

WITH_TARGET = (
    click.option(
        "--spdk-socket",
        type=_PATH,
        metavar="PATH",
        help="JSON-RPC socket of a running SPDK target; without it the embedded target is started.",
    ),
    click.option(
        "--file-disk",
        "file_disks",
        multiple=True,
        metavar="PATH:SIZE:TIER",
        help="A regular file as a disk, like /srv/d0:20GiB:nvme (tiers: nvme, ssd, hdd); created sparse when missing. "
        "Repeatable.",
    ),
    click.option("--node-name", metavar="NAME", help="Name of this node [default: the host name]."),
    click.option("--zone", metavar="NAME", help="Rack, room or cloud zone of this node [default: none]."),
    click.option("--nvmf-address", metavar="ADDR", help="Address volumes are exported on [default: 127.0.0.1]."),
    click.option(
        "--nvmf-port", type=click.IntRange(1, 65535), metavar="PORT", help="Port of the same [default: 4420]."
    ),
)

MOUNT_ROOTS = click.option(
    "--mount-root",
    "mount_roots",
    type=_PATH,
    multiple=True,
    metavar="DIR",
    help="Folder under which CSI may mount [default: /var/lib/kubelet and STATE_DIR/csi]. Repeatable.",
)


class Role(Protocol):
    """One of agent.daemon."""

    async def run_until_signal(self) -> None: ...


def state_dir(holds: str) -> Callable[[F], F]:
    """--state-dir; `holds` says what is in that folder."""
    return click.option("--state-dir", type=_PATH, metavar="DIR", help=f"Folder {holds} [default: /var/lib/quarry].")


def options(*added: Callable[[Any], Any]) -> Callable[[F], F]:
    """These options, shown in this order, then those of logs."""

    def add(command: F) -> F:
        result: Any = log_options(None)(command)
        for each in reversed(added):
            result = each(result)
        return result  # type: ignore[no-any-return]

    return add


def run(
    role: Callable[[Settings], Role],
    *,
    config: Path | None,
    log_level: str | None,
    log_format: str | None,
    **flags: Any,
) -> None:
    """Run `role` with the settings of file and flags until it ends."""
    configure_logs(log_level, log_format)
    from agent.config.settings import load_settings
    from agent.csi.tuning import tune

    tune()  # before gRPC is loaded

    settings = load_settings(config, **flags)
    configure_logs(log_level or settings.log.level, log_format or settings.log.format)
    from agent.host import event_loop

    event_loop.run(role(settings).run_until_signal())
