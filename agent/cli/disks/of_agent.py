"""Disks as a running agent tells of them: all there is of another machine's, beside a look at them of this one's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from agent.cli.asking import Where, all_of
from agent.cli.disks import recorded
from agent.cli.resources import Kind
from agent.cli.tables import size
from agent.diag import ENDPOINT_FILE
from agent.errors import QuarryError

Documents = Mapping[str, dict[str, Any]]


def told(state_dir: Path) -> Documents:
    """What the agent of this machine tells of its disks, by identity; nothing when none answers."""
    if not (state_dir / ENDPOINT_FILE).exists():
        return {}
    try:
        return {each["meta"]["name"]: each for each in all_of(Where(state_dir), "disks")}
    except QuarryError as error:
        click.echo(f"quarry: not seen: the space of pools: {error}", err=True)
        return {}


def space_lines(document: dict[str, Any] | None) -> Iterator[tuple[str, list[str]]]:
    """The pool of a disk in service as it is now, for a person."""
    space = (document or {}).get("space")
    if space is not None:
        yield "pool now", [space_of(space), *([] if space["accepting"] else ["takes no new volumes"])]


def taken(document: dict[str, Any] | None) -> str:
    """How full the pool of a disk is, in percent; `-` without one."""
    space = (document or {}).get("space")
    if not space or not space["size_bytes"]:
        return "-"
    return f"{100 * space['allocated_bytes'] / space['size_bytes']:.1f}%"


def space_of(space: dict[str, Any]) -> str:
    percent = 100 * space["allocated_bytes"] / space["size_bytes"] if space["size_bytes"] else 0.0
    return (
        f"{size(space['allocated_bytes'])} of {size(space['size_bytes'])} taken ({percent:.1f} %), "
        f"{size(space['reserved_bytes'])} promised to volumes"
    )


def _health(disk: dict[str, Any]) -> str:
    return next((each["reason"] for each in disk["status"]["conditions"] if each["type"] == "Healthy"), "-")


def _row(disk: dict[str, Any]) -> list[str]:
    status, space = disk["status"], disk.get("space")
    return [
        status["path"],
        status["node"],
        disk["tier"],
        status["transport"],
        size(status["size_bytes"]),
        status["phase"],
        _health(disk),
        size(space["allocated_bytes"]) if space else "-",
        size(space["reserved_bytes"]) if space else "-",
        disk["meta"]["name"],
        status["message"]
        or recorded.zeroing((each["type"], each["message"]) for each in status["conditions"])
        or "; ".join(status["reasons"]),
    ]


def _facts(disk: dict[str, Any]) -> Iterator[tuple[str, Iterable[str]]]:
    spec, status = disk["spec"], disk["status"]
    wanted = {True: "claimed", False: "released", None: "not claimed"}[spec["claimed"]]
    yield "id", [disk["meta"]["name"]]
    yield "state", [f"{status['phase']}, {wanted}", *([status["message"]] if status["message"] else [])]
    yield "node", [status["node"]]
    yield "path", [status["path"], *status["links"]]
    yield "tier", [disk["tier"] + (f" (its own: {status['tier']})" if disk["tier"] != status["tier"] else "")]
    yield "transport", [status["transport"]]
    yield "driver", [status["driver"]]
    yield "model", [status["model"] or "-"]
    yield "serial", [status["serial"] or "-"]
    yield "size", [f"{size(status['size_bytes'])} ({status['size_bytes']} bytes)"]
    yield from space_lines(disk)
    yield "claimable", ["yes"] if status["eligible"] else [f"no: {reason}" for reason in status["reasons"]]
    yield "conditions", [f"{each['type']} {each['status']}: {each['message']}" for each in status["conditions"]]
    yield "volumes", disk.get("volumes", [])
    yield "snapshots", disk.get("snapshots", [])


KIND = Kind(
    "disks",
    ["PATH", "NODE", "TIER", "TRANSPORT", "SIZE", "STATE", "HEALTH", "TAKEN", "PROMISED", "ID", "REASONS"],
    _row,
    _facts,
    right=["SIZE", "TAKEN", "PROMISED"],
)
