"""The agent under measurement: `quarry standalone` as a process of its own, driven through its CSI socket."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil
import requests
from prometheus_client.parser import text_string_to_metric_families

from agent.csi.client import CsiClient, capability
from tests.bench.raw import STEPS

NODE = "bench-node"
TIER = "nvme"
READY_TIMEOUT_S = 120.0

T = TypeVar("T")
Timings = dict[str, list[float]]


@dataclass
class Agent:
    """`quarry standalone` on the target's socket, with one sparse file as its disk."""

    folder: Path
    spdk_socket: Path
    address: str
    port: int
    disk_size: str
    process: asyncio.subprocess.Process | None = field(default=None, init=False)

    @property
    def disk(self) -> Path:
        return self.folder / "disk.img"

    @property
    def endpoint(self) -> str:
        return f"unix://{self.folder}/csi.sock"

    async def start(self) -> CsiClient:
        """Starts it; returns a client when the target behind it is ready."""
        argv = [
            *(sys.executable, "-m", "agent.cli.main", "standalone"),
            *("--state-dir", str(self.folder / "state"), "--csi-endpoint", self.endpoint, "--node-name", NODE),
            *("--spdk-socket", str(self.spdk_socket), "--file-disk", f"{self.disk}:{self.disk_size}:{TIER}"),
            *("--nvmf-address", self.address, "--nvmf-port", str(self.port)),
        ]
        with (self.folder / "agent.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(*argv, stdout=log, stderr=log)
        client = CsiClient(self.endpoint)
        await client.wait_ready(READY_TIMEOUT_S)
        await until_probe(client, True)
        return client

    async def stop(self) -> None:
        """SIGTERM, then kill -9 when it does not end within 15 s."""
        if self.process is None or self.process.returncode is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.process.wait(), 15)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()

    async def calls(self) -> float:
        """How many calls it made to its target so far, as its metrics tell."""
        url = json.loads((self.folder / "state/http.json").read_text())["url"]
        answer = await asyncio.to_thread(requests.get, f"{url}/metrics", timeout=30)
        families = text_string_to_metric_families(answer.text)
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == "quarry_spdk_call_duration_seconds_count"
        )

    def usage(self) -> tuple[float, float]:
        """CPU seconds used so far, and resident memory in MiB."""
        if self.process is None:
            return 0.0, 0.0
        process = psutil.Process(self.process.pid)
        cpu = process.cpu_times()
        return cpu.user + cpu.system, process.memory_info().rss / (1 << 20)


async def until_probe(client: CsiClient, ready: bool) -> float:
    """Waits until Probe answers `ready`; the moment it did, in monotonic seconds."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while await client.probe() is not ready:
        if time.monotonic() > deadline:
            raise RuntimeError(f"Probe did not become {ready} within {READY_TIMEOUT_S:g} s")
        await asyncio.sleep(0.005)
    return time.monotonic()


async def lives(client: CsiClient, names: list[str], size_bytes: int, callers: int) -> tuple[float, Timings]:
    """Whole lives of volumes through CSI, `callers` at a time: seconds in all, and seconds of each call."""
    taken: Timings = {step: [] for step in STEPS}

    async def life(name: str) -> None:
        volume = await timed(taken["create"], client.create_volume(name, size_bytes, {"tier": TIER}, block=True))
        await timed(taken["publish"], client.publish(volume, NODE, block=True))
        await timed(taken["unpublish"], client.unpublish(volume, NODE))
        await timed(taken["delete"], client.delete_volume(volume))

    return await pooled(names, callers, life), taken


async def create(client: CsiClient, names: list[str], size_bytes: int, callers: int, *, publish: bool) -> list[str]:
    """Volumes that stay; their ids."""
    ids: list[str] = []

    async def one(name: str) -> None:
        volume = await client.create_volume(name, size_bytes, {"tier": TIER}, block=True)
        if publish:
            await client.publish(volume, NODE, block=True)
        ids.append(volume)

    await pooled(names, callers, one)
    return ids


async def queries(client: CsiClient, volume: str, size_bytes: int, times: int) -> Timings:
    """Seconds of the calls that change nothing (expand: to the size it has), one caller."""
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "Probe": client.probe,
        "NodeGetInfo": client.node_info,
        "GetCapacity": lambda: client.capacity({"tier": TIER}),
        "ValidateVolumeCapabilities": lambda: client.validate(volume, [capability(block=True)]),
        "ControllerExpandVolume (no change)": lambda: client.expand(volume, size_bytes),
        "CreateVolume (repeated)": lambda: client.create_volume("kept-0", size_bytes, {"tier": TIER}, block=True),
    }
    taken: Timings = {name: [] for name in calls}
    for name, call in calls.items():
        for _ in range(times):
            await timed(taken[name], call())
    return taken


async def pooled(names: list[str], callers: int, work: Callable[[str], Awaitable[None]]) -> float:
    """Seconds for `work` on all names, `callers` at a time."""
    pending = iter(names)

    async def caller() -> None:
        for name in pending:
            await work(name)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    return time.perf_counter() - started


async def timed(into: list[float], call: Awaitable[T]) -> T:
    """What `call` answers; `into` gets the seconds it took."""
    started = time.perf_counter()
    result = await call
    into.append(time.perf_counter() - started)
    return result
