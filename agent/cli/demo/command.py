"""The `quarry demo` command line."""

from __future__ import annotations

import click

from agent.cli.output import configure_logs, log_options, output_option

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
@output_option
@log_options("error")
def demo(frontend: str, data_mib: int, output: str, log_level: str | None, log_format: str | None) -> None:
    """Watch one volume live: create, attach, format, mount, write, verify, expand, delete.

    Runs in a temporary folder with three file disks and leaves nothing behind, also when interrupted.
    """
    configure_logs(log_level, log_format)
    import asyncio

    from agent.cli.demo.run import run_demo

    click.get_current_context().exit(asyncio.run(run_demo(frontend, data_mib << 20, output)))
