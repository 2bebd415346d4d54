"""The `quarry demo` command line."""

from __future__ import annotations

from pathlib import Path

import click

from agent.cli.output import configure_logs, log_options, output_option
from agent.cli.paths import PATH

FRONTENDS = ("auto", "loop", "nvme-tcp", "user")


@click.command(short_help="Watch one volume live, from creation to deletion.")
@click.option(
    "--frontend",
    type=click.Choice(FRONTENDS),
    default="auto",
    show_default=True,
    help="How the volume is reached: a kernel block device (loop, nvme-tcp) or NVMe/TCP from user space (user).",
)
@click.option("--data-mib", type=click.IntRange(1, 4096), default=64, show_default=True, help="Random data to write.")
@click.option(
    "--spdk-socket",
    type=PATH,
    metavar="PATH",
    help="Show it on this running SPDK target instead of the embedded one; its disks are given back at the end.",
)
@output_option
@log_options("error")
def demo(
    frontend: str, data_mib: int, spdk_socket: Path | None, output: str, log_level: str | None, log_format: str | None
) -> None:
    """Watch one volume live: create, attach, format, mount, write, verify, expand, delete.

    Runs in a temporary folder with three file disks and leaves nothing behind, also when interrupted.
    """
    configure_logs(log_level, log_format)
    import asyncio

    from agent.cli.demo.run import Wish, run_demo

    socket = spdk_socket.absolute() if spdk_socket else None
    code = asyncio.run(run_demo(Wish(frontend, data_mib << 20, socket), output))
    click.get_current_context().exit(code)
