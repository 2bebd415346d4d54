"""The recorded calls of a real SPDK v26.05, replayed: the same success or failure, the same error code and answer.

The recording names two targets, "a" and "b". Paths, ports and UUIDs are mapped to this run's; between its scenarios
somebody killed a target, grew a disk and changed a file's mode, which is done here as well.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from agent.errors import RpcError
from agent.spdk import app
from agent.spdk.client import Client

from .targets import Target, free_port
from .waiting import reconnected, until

UNSUPPORTED: set[str] = set()
"""Recorded methods that the embedded target does not have: none."""

MACHINE_DEPENDENT = {"ublk_create_target"}
"""What the real target answers depends on the kernel's modules."""

DIFFERS = {
    r"rpc_get_methods": "another build has other methods",
    r".*\.(tick_rate|tsc_rate)": "the clock of the machine",
    r"framework_get_reactors\..*|thread_get_stats\..*": "the process, its threads and their times",
    r"nvmf_subsystem_get_qpairs.*\.peer_address\.trsvcid": "the port that the host happened to get",
    r"bdev_nvme_get_controllers.*\.(state|cntlid)": "how far a reconnection has come",
}
"""Where no two answers to the same call need be equal."""

DIFFERS_IN_EMBEDDED = {
    r"spdk_get_version.*": "it says what it is",
    r"bdev_get_bdevs.*\.driver_specific\.embedded": "tells the file behind a volume",
    r"bdev_get_histogram\..*": "ranges follow from the clock's rate",
    r"iobuf_get_stats.*": "it has no buffer pools",
    r"bdev_get_bdevs.*\.supported_io_types\.(compare_and_write|copy)": "its controllers lack fused commands and Copy",
    r"nvmf_subsystem_get_controllers.*\.num_io_qpairs|nvmf_subsystem_get_qpairs": "hosts open I/O queues at once",
}

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
DEFAULT_DISK_BYTES = 8 << 30
SETTLE_TIMEOUT_S = 60.0


def find_transcript() -> Path | None:
    """SPDK_TRANSCRIPT, else the folder shared beside the repository."""
    given = os.environ.get("SPDK_TRANSCRIPT")
    path = Path(given) if given else Path(__file__).parents[3] / "shared" / "spdk" / "transcript.jsonl"
    return path if path.is_file() else None


@pytest.fixture(scope="module")
def recording() -> list[dict[str, Any]]:
    path = find_transcript()
    if path is None:
        pytest.skip("the recorded transcript.jsonl is absent (SPDK_TRANSCRIPT)")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def pair(recording: list[dict[str, Any]], target: Target, peer: Target) -> dict[str, Target]:
    """Two targets that nothing has happened to."""
    target.restart()
    peer.restart()
    return {"a": target, "b": peer}


@pytest.fixture
async def clients(pair: dict[str, Target]) -> AsyncIterator[dict[str, Client]]:
    async with AsyncExitStack() as stack:
        made = {}
        for name, target in pair.items():
            made[name] = Client(target.socket_path, call_timeout_s=60.0, reconnect_min_s=0.01)
            await stack.enter_async_context(made[name])
            await made[name].wait_connected(30)
        yield made


class Mapping:
    """From the recording's names to this run's. UUIDs are learnt from answers that stand in the same place."""

    def __init__(self, disks: Path) -> None:
        self.disks = disks
        self.ports: dict[str, str] = {}
        self.uuids: dict[str, str] = {}

    def apply(self, value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: self.apply(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [self.apply(inner) for inner in value]
        if not isinstance(value, str):
            return value
        if key == "trsvcid":
            return self.ports.setdefault(value, str(free_port()))
        if key == "nguid":
            dashed = str(uuid.UUID(value))
            return self.uuids.get(dashed, dashed).replace("-", "").upper()
        value = value.replace("/disks/", f"{self.disks}/")
        return UUID.sub(lambda found: self.uuids.get(found.group(), found.group()), value)

    def learn(self, recorded: Any, actual: Any) -> None:
        if isinstance(recorded, dict) and isinstance(actual, dict):
            for name in recorded.keys() & actual.keys():
                self.learn(recorded[name], actual[name])
        elif isinstance(recorded, list) and isinstance(actual, list):
            for one, other in zip(recorded, actual, strict=False):
                self.learn(one, other)
        elif isinstance(recorded, str) and isinstance(actual, str) and UUID.fullmatch(recorded):
            self.uuids[recorded] = actual


class Replay:
    """What happened around the recorded calls, and the calls."""

    def __init__(
        self, recording: list[dict[str, Any]], targets: dict[str, Target], clients: dict[str, Client], disks: Path
    ) -> None:
        embedded = targets["a"].kind == "embedded"
        self.may_differ = re.compile("|".join([*DIFFERS, *(DIFFERS_IN_EMBEDDED if embedded else ())])).fullmatch
        self.recording = recording
        self.targets = targets
        self.clients = clients
        self.mapping = Mapping(disks)
        self.scenario = ""
        self.differences: list[str] = []
        self.deviations: list[str] = []

    async def run(self, skip: set[str]) -> None:
        self.make_disks()
        for number, line in enumerate(self.recording, 1):
            if line["scenario"] != self.scenario:
                self.scenario = line["scenario"]
                await self.enter_scenario()
            if line["method"] not in skip:
                await self.call(number, line)

    def make_disks(self) -> None:
        """One sparse file for each that is ever named, of the size that its bdev was seen with first."""
        sizes: dict[str, int] = {}
        for line in self.recording:
            if line["method"] == "bdev_get_bdevs" and "name" in line["params"] and "result" in line:
                found = line["result"][0]
                sizes.setdefault(found["name"], found["num_blocks"] * found["block_size"])
        for line in self.recording:
            path = line["params"].get("filename")
            if path and "missing" not in path and (line["params"]["name"] in sizes or "result" in line):
                size = sizes.get(line["params"]["name"], DEFAULT_DISK_BYTES)
                file = Path(self.mapping.apply(path))
                if not file.exists():
                    file.touch()
                    os.truncate(file, size)
        (self.mapping.disks / "k1").write_text("NVMeTLSkey-1:01:MDAxMTIyMzM0NDU1NjY3Nzg4OTlhYWJiY2NkZGVlZmZwJEiQ:\n")
        (self.mapping.disks / "k1").chmod(0o644)

    async def enter_scenario(self) -> None:
        if self.scenario == "restart":
            self.targets["a"].restart()
            await reconnected(self.clients["a"], self.targets["a"].pid)
        elif self.scenario == "grow":
            grown = next(
                line["result"][0]
                for line in self.recording
                if line["scenario"] == "grow" and line["method"] == "bdev_get_bdevs"
            )
            os.truncate(self.mapping.disks / f"{grown['name']}.img", grown["num_blocks"] * grown["block_size"])

    async def call(self, number: int, line: dict[str, Any]) -> None:
        client = self.clients[line["target"]]
        params = self.mapping.apply(line["params"])
        wanted = line.get("error", {}).get("code")
        got: int | None = None
        message = ""
        try:
            result = ordered(
                await until(lambda: client.call(line["method"], params), lambda r: settled(line, r), SETTLE_TIMEOUT_S)
            )
            self.mapping.learn(ordered(line.get("result")), result)
            if "result" in line:
                recorded = self.mapping.apply(ordered(line["result"]))
                found = deviations(recorded, result, line["method"])
                self.deviations += [f"line {number} {told}" for where, told in found if not self.may_differ(where)]
        except RpcError as error:
            got, message = error.code, error.message
        if got != wanted:
            told = json.dumps(line["params"])[:120]
            self.differences.append(f"line {number} {line['method']} {told}: recorded {wanted}, got {got} {message}")
        if line["method"] == "keyring_file_add_key" and wanted is not None:
            (self.mapping.disks / "k1").chmod(0o600)  # keys that others can read are refused


def ordered(result: Any) -> Any:
    """Lvols by alias: after a restart the order in which they are listed means nothing."""
    if isinstance(result, list) and all(isinstance(one, dict) and "alias" in one for one in result):
        return sorted(result, key=lambda one: str(one["alias"]))
    return result


def deviations(recorded: Any, actual: Any, where: str) -> list[tuple[str, str]]:
    """Where an answer differs from the recorded one, and how."""
    if isinstance(recorded, dict) and isinstance(actual, dict):
        found = [(f"{where}.{name}", f"{where}.{name} is missing") for name in recorded.keys() - actual.keys()]
        found += [(f"{where}.{name}", f"{where}.{name} is new") for name in actual.keys() - recorded.keys()]
        for name in recorded.keys() & actual.keys():
            found += deviations(recorded[name], actual[name], f"{where}.{name}")
        return found
    if isinstance(recorded, list) and isinstance(actual, list) and len(recorded) == len(actual):
        pairs = enumerate(zip(recorded, actual, strict=True))
        return [one for n, (old, new) in pairs for one in deviations(old, new, f"{where}[{n}]")]
    return [] if recorded == actual else [(where, f"{where}: recorded {recorded!r:.120}, got {actual!r:.120}")]


def settled(line: dict[str, Any], result: Any) -> bool:
    """Whether what takes its time has happened: connections lost for good, sizes seen, rebuilds done."""
    recorded = line.get("result")
    if line["method"] in ("bdev_nvme_get_controllers", "nvmf_subsystem_get_controllers"):
        return recorded is None or len(result) == len(recorded)
    if line["method"] == "bdev_raid_get_bdevs" and recorded and "process" not in recorded[0]:
        return bool(result) and "process" not in result[0]
    if line["method"] == "bdev_get_bdevs" and recorded and "name" in line["params"]:
        return bool(result[0]["num_blocks"] == recorded[0]["num_blocks"])
    return True


@pytest.mark.timeout(300)
async def test_every_recorded_call_ends_as_it_did(
    kind: str, recording: list[dict[str, Any]], pair: dict[str, Target], clients: dict[str, Client]
) -> None:
    has = set(await app.methods(clients["a"]))
    recorded = {line["method"] for line in recording} - {"no_such_method", "framework_start_init"}
    assert recorded - has == (UNSUPPORTED if kind == "embedded" else set())
    with tempfile.TemporaryDirectory(prefix="qt-") as disks:
        replay = Replay(recording, pair, clients, Path(disks))
        await replay.run(UNSUPPORTED if kind == "embedded" else MACHINE_DEPENDENT)
    assert not replay.differences, "\n".join(replay.differences)
    assert not replay.deviations, "\n".join(replay.deviations)
