"""`quarry nodes`: the machines and their targets, as a running agent tells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from agent.cli.asking import Where, all_of, one_of, where_options
from agent.cli.output import configure_logs, log_options, output_option, print_json
from agent.cli.tables import age, moment, print_facts, print_listing


@click.group(short_help="Look at the nodes and their targets.")
def nodes() -> None:
    """Look at the nodes: their targets, addresses and frontends, as a running agent tells."""


@nodes.command("list", short_help="List the nodes.")
@where_options
@output_option
@log_options("warning")
def list_nodes(where: Where, output: str, **logging: str | None) -> None:
    """List the nodes with the state of their targets."""
    configure_logs(logging["log_level"], logging["log_format"])
    found = all_of(where, "nodes")
    if output == "json":
        print_json(found)
        return
    if not found:
        click.echo("no nodes")
        return
    columns = ["NAME", "TARGET", "VERSION", "ADDRESSES", "ZONE", "FRONTENDS", "CORDONED", "SEEN"]
    print_listing(columns, [_row(node) for node in found])


@nodes.command(short_help="Show all that is known of one node.")
@click.argument("name")
@where_options
@output_option
@log_options("warning")
def show(name: str, where: Where, output: str, **logging: str | None) -> None:
    """Show all that is known of the node NAME."""
    configure_logs(logging["log_level"], logging["log_format"])
    node = one_of(where, "nodes", name)
    if output == "json":
        print_json(node)
    else:
        print_facts(_facts(node))


def _state(node: dict[str, Any]) -> tuple[str, str]:
    """State and version of the target: what the agent sees now, else what it recorded last."""
    now, status = node.get("now") or {}, node["status"]
    return (
        now.get("target_state", status["target_state"]),
        (now.get("target_version") or status["target_version"]).split(" git ")[0],
    )


def _row(node: dict[str, Any]) -> list[str]:
    status = node["status"]
    state, version = _state(node)
    seen = "now" if node.get("now") else age(status["last_heartbeat"])
    cordoned = "yes" if node["spec"]["cordoned"] else "no"
    addresses, frontends = ",".join(status["addresses"]) or "-", ",".join(status["frontends"]) or "-"
    return [node["meta"]["name"], state, version or "-", addresses, status["zone"] or "-", frontends, cordoned, seen]


def _facts(node: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    status, now = node["status"], node.get("now") or {}
    state, version = _state(node)
    yield "name", [node["meta"]["name"]]
    yield "target", [state, *([now["trouble"]] if now.get("trouble") else [])]
    yield "version", [version] if version else []
    if now:
        took = now["last_rebuild_seconds"]
        last = f", the last in {took:.2f} s" if took is not None else ""
        yield "brought up", [f"{now['target_rebuilds']} times since the agent started{last}"]
    yield "seen", ["now" if now else moment(status["last_heartbeat"])]
    yield "addresses", status["addresses"]
    yield "zone", [status["zone"]] if status["zone"] else []
    yield "cordoned", ["yes: it takes no new volumes" if node["spec"]["cordoned"] else "no"]
    yield "host NQN", [status["host_nqn"]]
    yield "frontends", [", ".join(status["frontends"])]
    yield "volume limit", [str(status["max_volumes"]) if status["max_volumes"] else "none"]
    yield "disks", node.get("disks", [])
    yield "published volumes", node.get("published", [])
