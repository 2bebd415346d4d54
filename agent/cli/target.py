"""`quarry target`: runs the embedded target in the foreground."""

from __future__ import annotations

from pathlib import Path

import click

from agent.cli.output import configure_logs, log_options
from agent.cli.paths import FOLDER, PATH


@click.command(short_help="Run the embedded target, a stand-in for spdk_tgt.")
@click.option("--rpc-socket", type=PATH, required=True, help="UNIX socket for JSON-RPC.")
@click.option(
    "--state-dir",
    type=FOLDER,
    required=True,
    help="Folder that keeps the state across restarts; created when missing.",
)
@click.option(
    "--nvmf-address", metavar="ADDR", default=None, help="The only address NVMe/TCP may listen on [default: any]."
)
@click.option(
    "--max-subsystems",
    type=click.IntRange(2, 65_536),
    default=65_536,
    show_default=True,
    help="How many NVMe-oF subsystems it serves, that of discovery included; spdk_tgt: 1,024 unless it is told.",
)
@log_options("info")
def target(
    rpc_socket: Path,
    state_dir: Path,
    nvmf_address: str | None,
    max_subsystems: int,
    log_level: str | None,
    log_format: str | None,
) -> None:
    """Run the embedded target: a stand-in for spdk_tgt for development, demos and tests.

    Speaks SPDK's JSON-RPC on a UNIX socket and NVMe/TCP on the network, with regular files as disks. Data written to
    it is real and survives restarts, but its speed is not a goal: use spdk_tgt for anything else.
    Ends on SIGTERM or Ctrl-C.
    """
    configure_logs(log_level, log_format)
    import asyncio

    from agent.config.fields import listening_address
    from agent.embedded.main import run_target

    address = None if nvmf_address is None else listening_address("--nvmf-address", nvmf_address)
    asyncio.run(run_target(rpc_socket.absolute(), state_dir.absolute(), address, max_subsystems))
