"""`quarry nodes`: the machines and their targets, as a running agent tells; and giving up one that is gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import click

from agent.cli.asking import Where
from agent.cli.forgetting import forget
from agent.cli.resources import Kind, asking_options
from agent.cli.tables import age, moment


@click.group(short_help="Look at the nodes and their targets.")
def nodes() -> None:
    """Look at the nodes: their targets, addresses and frontends, as a running agent tells."""


@nodes.command("list", short_help="List the nodes.")
@asking_options
def list_nodes(where: Where, output: str) -> None:
    """List the nodes with the state of their targets."""
    _KIND.print_all(where, output)


nodes.add_command(forget)


@nodes.command(short_help="Show all that is known of one node.")
@click.argument("name")
@asking_options
def show(name: str, where: Where, output: str) -> None:
    """Show all that is known of the node NAME."""
    _KIND.print_one(where, name, output)


def _state(node: dict[str, Any]) -> tuple[str, str]:
    """State and version of the target: what the agent sees now, else what it recorded last."""
    now, status = node.get("now") or {}, node["status"]
    return (
        now.get("target_state", status["target_state"]),
        (now.get("target_version") or status["target_version"]).split(" git ")[0],
    )


def _seen(node: dict[str, Any], when: Callable[[float], str]) -> str:
    """Whether it gives signs of life: to the agent that was asked, or as the controller tells."""
    if node.get("now"):
        return "now"
    for each in node["status"]["conditions"]:
        if each["type"] == "Alive":
            return "alive" if each["status"] == "True" else f"dead since {when(each['changed_at'])}"
    return when(node["status"]["last_heartbeat"])


def _mode(status: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What the target is, and whether it sleeps while there is nothing to do."""
    mode = now.get("target_mode") or status.get("target_mode", "")
    words = {
        "polling": "polling: its CPUs are never idle",
        "interrupt": "interrupt: it sleeps while there is nothing to do",
    }
    program = f"{now['target_program']}, " if now.get("target_program") else ""
    return [program + words.get(mode, mode)] if mode else []


def _row(node: dict[str, Any]) -> list[str]:
    status = node["status"]
    state, version = _state(node)
    seen = _seen(node, age)
    mode = (node.get("now") or {}).get("target_mode") or status.get("target_mode") or "-"
    cordoned = "yes" if node["spec"]["cordoned"] else "no"
    addresses, frontends = ",".join(status["addresses"]) or "-", ",".join(status["frontends"]) or "-"
    return [
        node["meta"]["name"],
        state,
        mode,
        version or "-",
        addresses,
        status["zone"] or "-",
        frontends,
        cordoned,
        seen,
    ]


def _facts(node: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    status, now = node["status"], node.get("now") or {}
    state, version = _state(node)
    yield "name", [node["meta"]["name"]]
    yield "target", [state, *([now["trouble"]] if now.get("trouble") else [])]
    yield "version", [version] if version else []
    yield "mode", _mode(status, now)
    if seen := now.get("activity"):
        yield "load", [seen["described"]]
        yield "kept awake by", [seen["awake"]] if seen["awake"] else []
    if now:
        took = now["last_rebuild_seconds"]
        last = f", the last in {took:.2f} s" if took is not None else ""
        yield "brought up", [f"{now['target_rebuilds']} times since the agent started{last}"]
    yield "seen", [_seen(node, moment)]
    yield "addresses", status["addresses"]
    yield "zone", [status["zone"]] if status["zone"] else []
    yield "cordoned", ["yes: it takes no new volumes" if node["spec"]["cordoned"] else "no"]
    yield "host NQN", [status["host_nqn"]]
    yield "frontends", [", ".join(status["frontends"])]
    yield "volume limit", [str(status["max_volumes"]) if status["max_volumes"] else "none"]
    yield "disks", node.get("disks", [])
    yield "published volumes", node.get("published", [])


_KIND = Kind(
    "nodes", ["NAME", "TARGET", "MODE", "VERSION", "ADDRESSES", "ZONE", "FRONTENDS", "CORDONED", "SEEN"], _row, _facts
)
