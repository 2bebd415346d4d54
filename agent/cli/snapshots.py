"""`quarry snapshots`: snapshots and what stands on them, as a running agent tells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from agent.cli.asking import Where
from agent.cli.resources import Kind, asking_options
from agent.cli.tables import age, moment, size


@click.group(short_help="Look at snapshots and what stands on them.")
def snapshots() -> None:
    """Look at snapshots and what stands on them, as a running agent tells."""


@snapshots.command("list", short_help="List the snapshots.")
@asking_options
def list_snapshots(where: Where, output: str) -> None:
    """List the snapshots, also those that the agent takes for itself while it clones a volume."""
    _KIND.print_all(where, output)


@snapshots.command(short_help="Show everything about one snapshot.")
@click.argument("name")
@asking_options
def show(name: str, where: Where, output: str) -> None:
    """Show everything about the snapshot NAME (its id or its CSI name)."""
    _KIND.print_one(where, name, output)


def _phase(snapshot: dict[str, Any]) -> str:
    return "Deleting" if snapshot["meta"]["deleting"] else str(snapshot["status"]["phase"])


def _row(snapshot: dict[str, Any]) -> list[str]:
    spec, status = snapshot["spec"], snapshot["status"]
    return [
        spec["csi_name"] or "-",
        snapshot["meta"]["name"],
        spec["volume"],
        size(status["size_bytes"] or spec["size_bytes"]),
        _phase(snapshot),
        spec["disk"] or "-",
        age(status["created_at"] or snapshot["meta"]["created_at"]),
    ]


def _facts(snapshot: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    meta, spec, status = snapshot["meta"], snapshot["spec"], snapshot["status"]
    size_bytes = status["size_bytes"] or spec["size_bytes"]
    yield "CSI name", [spec["csi_name"] or "-"]
    yield "id", [meta["name"]]
    yield "phase", [_phase(snapshot), *([status["message"]] if status["message"] else [])]
    yield "of volume", [spec["volume"]]
    yield "size", [f"{size(size_bytes)} ({size_bytes} bytes), {spec['provisioning']}"]
    yield "taken", [moment(status["created_at"])]
    yield "lies on", [f"disk {spec['disk']} of node {spec['node']}"] if spec["disk"] else []
    yield "lvols", [f"{name}: {uuid}" for name, uuid in status["lvols"]]
    if spec["group"]:
        yield "group", [spec["group"]]
    if spec["owner"]:
        yield "taken for", [f"volume {spec['owner']}, which is made of {spec['volume']}"]
    yield "stands on", [f"snapshot {each}" for each in snapshot.get("stands_on", [])] or ["nothing"]
    yield "carries", snapshot.get("carries", []) or ["nothing: it can be deleted at once"]


_KIND = Kind("snapshots", ["CSI NAME", "ID", "VOLUME", "SIZE", "PHASE", "DISK", "AGE"], _row, _facts, right=["SIZE"])
