"""Everything that lasts, read past the agent and made comparable: target, store, kernel, notes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agent.csi.client import CsiClient
from agent.spdk.client import Client

from .subject import Subject

_UUID = re.compile(r"\b([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9A-F]{32})\b")
_GENERATION = re.compile(r"(snap-[A-Z]+)-\d+")
_VOLATILE = frozenset(
    {"version", "message", "created_at", "changed_at", "last_heartbeat", "free_bytes", "target_state"}
)
"""Store: versions, words, times, what a pool had left and how the target was when they were looked at last."""

RESTART_S = 30.0

Landscape = dict[str, Any]
View = Callable[[Landscape], Landscape]


async def read(subject: Subject, target: Client, csi: CsiClient, names: Mapping[str, str]) -> Landscape:
    """`names`: what stands for each CSI name. UUIDs become numbers in order of appearance: equal ones stay equal."""
    seen = {
        "store": _store(subject.state_dir / "quarry.db"),
        "target": await _target(target),
        "host": _host(subject),
        # For thin volumes: what is promised. What is free for thick ones is read from the pool at intervals.
        "capacity": await csi.capacity({"tier": "ssd", "provisioning": "thin"}),
    }
    text = json.dumps(seen, default=str)
    for name, role in names.items():
        digest = hashlib.sha256(name.encode()).hexdigest()
        for part in (digest[:32], digest[:19].upper(), json.dumps(name)[1:-1]):
            text = text.replace(part, role)
    text = _first_generation(text.replace(str(subject.folder), "FOLDER"))
    numbers: dict[str, str] = {}

    def number(found: re.Match[str]) -> str:
        return numbers.setdefault(found[0].lower().replace("-", ""), f"uuid-{len(numbers)}")

    ordered: Landscape = json.loads(_UUID.sub(number, json.dumps(_sorted(json.loads(text)))))
    return ordered


def _first_generation(text: str) -> str:
    """A snapshot that is made again while a deleted one of its name still has clones has a number behind its name."""
    for name in set(_GENERATION.findall(text)):
        if not re.search(rf"{name}\b(?!-)", text):
            text = re.sub(rf"{name}-\d+", name, text)
    return text


def _sorted(value: Any) -> Any:
    """Keys in order; lists of objects too, UUIDs being no part of the order."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return sorted((_sorted(each) for each in value), key=lambda each: _UUID.sub("", json.dumps(each)))
    return value


def whole(landscape: Landscape) -> Landscape:
    return landscape


def filled(landscape: Landscape) -> Landscape:
    """Without what pools have left: a filesystem writes when it likes."""
    return landscape | {"target": landscape["target"] | {"pools": {}}}


def loosened(landscape: Landscape) -> Landscape:
    """Without what may stay when an operation is given up.

    A closed subsystem needs neither namespace nor listener, and keeps what it once had. What formatting was begun is
    noted until the volume is staged again or gone.
    """
    files = [each for each in landscape["host"]["files"] if "/node/formatting/" not in each]
    target = filled(landscape)["target"]
    subsystems = {nqn: each if each["hosts"] else {"hosts": []} for nqn, each in target["subsystems"].items()}
    bdevs = {name: each | {"claimed": None} for name, each in target["bdevs"].items()}
    host = landscape["host"] | {"files": files}
    return landscape | {"host": host, "target": target | {"subsystems": subsystems, "bdevs": bdevs}}


def difference(expected: Any, found: Any, place: str = "") -> list[str]:
    """Places that differ, in words."""
    if isinstance(expected, dict) and isinstance(found, dict):
        lines = []
        for key in sorted(expected.keys() | found.keys()):
            lines += difference(expected.get(key), found.get(key), f"{place}.{key}")
        return lines
    return [] if expected == found else [f"{place[1:]}: expected {_short(expected)}, found {_short(found)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 700 else f"{text[:700]}…"


def _store(path: Path) -> dict[str, Any]:
    """All resources, but for the disks of the machine that the tests run on: those nobody claimed."""
    connection = sqlite3.connect(path)
    try:
        rows = connection.execute("SELECT kind, name, document FROM resources").fetchall()
    finally:
        connection.close()
    found = {f"{kind} {name}": _stable(json.loads(document)) for kind, name, document in rows}
    return {key: each for key, each in found.items() if each["spec"].get("claimed", True) is not None}


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _stable(each) for key, each in value.items() if key not in _VOLATILE}
    return [_stable(each) for each in value] if isinstance(value, list) else value


async def _target(rpc: Client) -> dict[str, Any]:
    await rpc.wait_connected(RESTART_S)
    bdevs, pools, subsystems = await asyncio.gather(
        rpc.call("bdev_get_bdevs"), rpc.call("bdev_lvol_get_lvstores"), rpc.call("nvmf_get_subsystems")
    )
    ours = {each["nqn"]: each for each in subsystems if each["subtype"] != "Discovery"}
    listeners = await asyncio.gather(*(rpc.call("nvmf_subsystem_get_listeners", {"nqn": nqn}) for nqn in ours))
    return {
        "bdevs": {_bdev_name(each): _bdev(each) for each in bdevs},
        "pools": {each["name"]: each["free_clusters"] for each in pools},
        "subsystems": {
            nqn: each | {"listen_addresses": found} for (nqn, each), found in zip(ours.items(), listeners, strict=True)
        },
    }


def _bdev_name(bdev: Mapping[str, Any]) -> str:
    name: str = bdev["aliases"][0] if bdev["aliases"] else bdev["name"]
    return name


def _bdev(bdev: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: bdev.get(key) for key in ("uuid", "block_size", "num_blocks", "claimed", "assigned_rate_limits")}
    lvol = dict(bdev.get("driver_specific", {}).get("lvol", {}))
    lvol.pop("num_allocated_clusters", None)
    return kept | {"lvol": lvol}


def _host(subject: Subject) -> dict[str, Any]:
    folder = f"{subject.folder}{os.sep}"
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    loops = [
        (text, (file.parents[1] / "ro").read_text().strip())
        for file in Path("/sys/block").glob("loop*/loop/backing_file")
        if (text := _text(file)).startswith(folder)
    ]
    notes = subject.state_dir / "node"
    files = [each for root in (notes, subject.pods) for each in _tree(root)]
    return {
        # A raw block volume shows as the devtmpfs that its node lies in.
        "mounts": sorted([each[1], each[2], each[3]] for each in mounts if each[1].startswith(folder)),
        "loops": sorted(loops),
        "files": sorted(_name(each, notes) for each in files if each.parent != notes),
    }


def _name(file: Path, notes: Path) -> str:
    """The file's; of a note of a path, which is named by a digest, what it says."""
    if file.parent != notes / "places" or file.suffix != ".json":
        return str(file)
    said = json.loads(file.read_text())
    return f"{file.parent}: {said['volume']} is {said['use']} at {said['path']}"


def _tree(root: Path) -> list[Path]:
    """Files and folders below, mounts not entered."""
    found = []
    for folder, folders, files in os.walk(root):
        found += [Path(folder) / each for each in (*folders, *files)]
        folders[:] = [each for each in folders if not os.path.ismount(Path(folder) / each)]
    return found


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:  # detached meanwhile
        return ""
