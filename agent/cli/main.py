"""The command tree of `quarry`. Also runs as `python -m agent.cli.main`."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import click

from agent import __version__
from agent.cli.asking import PLUGIN
from agent.cli.controller import controller
from agent.cli.demo.command import demo
from agent.cli.disks.commands import disks
from agent.cli.doctor import doctor
from agent.cli.node import node
from agent.cli.nodes import nodes
from agent.cli.output import ReportingGroup, output_option, print_json
from agent.cli.probe import probe
from agent.cli.snapshots import snapshots
from agent.cli.standalone import standalone
from agent.cli.target import target
from agent.cli.volumes import volumes


@click.group(cls=ReportingGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="quarry", message="%(prog)s %(version)s")
def quarry() -> None:
    """Turn raw disks into volumes: an agent that drives SPDK and serves CSI."""


@quarry.command(short_help="Print the version.")
@output_option
def version(output: str) -> None:
    """Print the version of quarry and of the Python it runs on."""
    facts = {"quarry": __version__, "python": platform.python_version(), "system": platform.platform()}
    if output == "json":
        print_json(facts)
    else:
        click.echo("\n".join(f"{name:<7} {value}" for name, value in facts.items()))


for command in (standalone, node, controller, target, nodes, disks, volumes, snapshots, doctor, probe, demo):
    quarry.add_command(command)


def main() -> None:
    """Entry point of the console scripts `quarry` and `kubectl-quarry` (`kubectl quarry`)."""
    _open_what_is_closed()
    quarry.main(prog_name=PLUGIN if Path(sys.argv[0]).name == PLUGIN else "quarry")


def _open_what_is_closed() -> None:
    """Under some init programs standard input and outputs are closed: what is opened next must not take their place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # in this order each gets its own number
            stream = open(os.devnull, mode)  # noqa: SIM115, PTH123 - as long as the process lives
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


if __name__ == "__main__":
    main()
