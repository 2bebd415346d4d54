"""`quarry volumes`: where their data lie, who has them and how they are, as a running agent tells; data without any."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from agent.cli.asking import Where
from agent.cli.resources import Kind, asking_options
from agent.cli.tables import age, moment, size
from agent.cli.unrecorded import adopt, discard


@click.group(short_help="Look at volumes: where they lie, who has them, how they are.")
def volumes() -> None:
    """Look at volumes: where their data lie, who has them and how they are, as a running agent tells."""


volumes.add_command(adopt)
volumes.add_command(discard)


@volumes.command("list", short_help="List the volumes.")
@asking_options
def list_volumes(where: Where, output: str) -> None:
    """List the volumes. What is wrong with one is said at the end of its line."""
    _KIND.print_all(where, output)


@volumes.command(short_help="Show everything about one volume.")
@click.argument("name")
@asking_options
def show(name: str, where: Where, output: str) -> None:
    """Show everything about the volume NAME (its id, or its CSI name: that of the PersistentVolume)."""
    _KIND.print_one(where, name, output)


def _phase(volume: dict[str, Any]) -> str:
    return "Deleting" if volume["meta"]["deleting"] else str(volume["status"]["phase"])


def _condition(volume: dict[str, Any]) -> str:
    condition = volume.get("condition")
    if condition is None:
        return volume["status"]["message"] or "-"
    return condition["message"] if condition["abnormal"] else "ok"


def _row(volume: dict[str, Any]) -> list[str]:
    meta, spec = volume["meta"], volume["spec"]
    return [
        spec["csi_name"] or "-",
        meta["name"],
        size(spec["size_bytes"]),
        spec["tier"],
        _phase(volume),
        ",".join(each["node"] for each in spec["attachments"]) or "-",
        ",".join(each["disk"] for each in spec["placement"]) or "-",
        age(meta["created_at"]),
        _condition(volume),
    ]


def _facts(volume: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    meta, spec, status = volume["meta"], volume["spec"], volume["status"]
    yield "CSI name", [spec["csi_name"] or "-"]
    yield "id", [meta["name"]]
    yield "phase", [_phase(volume), *([status["message"]] if status["message"] else [])]
    yield "condition", [_condition(volume)]
    yield "size", [f"{size(spec['size_bytes'])} ({spec['size_bytes']} bytes), {spec['provisioning']}"]
    if status["size_bytes"] and status["size_bytes"] != spec["size_bytes"]:
        yield "size now", [f"{size(status['size_bytes'])}: it is being grown"]
    yield "tier", [spec["tier"]]
    yield "created", [moment(meta["created_at"])]
    yield "lies on", list(_replicas(volume))
    yield "frontend", [spec["frontend"]]
    if spec["frontend"] == "nvme-tcp":
        yield "connection", [_connection(spec["connect"])]
    yield "published to", [_attachment(each) for each in spec["attachments"]] or ["nobody: no host may reach it"]
    yield "limits", list(_limits(spec["qos"])) or ["none"]
    yield "parameters", [f"{key}={value}" for key, value in spec["parameters"]]
    if (source := spec["source"]) is not None:
        of = f" by snapshot {source['snapshot']}" if source["snapshot"] not in ("", source["id"]) else ""
        yield "made of", [f"{source['kind']} {source['id']}{of}"]
    yield "stands on", [f"snapshot {each}" for each in volume.get("stands_on", [])] or ["nothing: all data are its own"]
    yield "snapshots of it", volume.get("snapshots", [])
    yield "conditions", [f"{each['type']} {each['status']}: {each['message']}" for each in status["conditions"]]


def _replicas(volume: dict[str, Any]) -> Iterator[str]:
    served = {each["name"]: each for each in volume["status"]["replicas"]}
    for replica in volume["spec"]["placement"]:
        yield f"{replica['name']}: disk {replica['disk']} of node {replica['node']}"
        state = served.get(replica["name"])
        if state is None:
            yield "    not made yet"
            continue
        yield f"    {'ready' if state['ready'] else 'not ready'}, lvol {state['lvol_uuid'] or '-'}"
        if (endpoint := state["endpoint"]) is not None:
            yield f"    {endpoint['address']}:{endpoint['port']} {endpoint['nqn']}"


def _connection(connect: dict[str, Any]) -> str:
    lost = connect["loss_timeout_s"]
    held = "waits for the target without end" if lost < 0 else f"fails after {lost} s without the target"
    queues = f", {connect['io_queues']} queues" if connect["io_queues"] else ""
    return f"{held}, reconnects every {connect['reconnect_delay_s']} s, keep-alive {connect['keep_alive_s']} s{queues}"


def _attachment(attachment: dict[str, Any]) -> str:
    readonly = ", read-only" if attachment["readonly"] else ""
    return f"{attachment['node']} ({attachment['access_mode']}{readonly}), host {attachment['host_nqn']}"


def _limits(qos: dict[str, int]) -> Iterator[str]:
    if qos["rw_iops"]:
        yield f"{qos['rw_iops']} operations/s"
    for key, what in (("rw_bytes", "read and written"), ("read_bytes", "read"), ("write_bytes", "written")):
        if limit := qos[f"{key}_per_second"]:
            yield f"{size(limit)}/s {what}"


_KIND = Kind(
    "volumes",
    ["CSI NAME", "ID", "SIZE", "TIER", "PHASE", "PUBLISHED TO", "DISK", "AGE", "CONDITION"],
    _row,
    _facts,
    right=["SIZE"],
)
