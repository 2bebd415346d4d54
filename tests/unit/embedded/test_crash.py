"""The target is killed with -9 at random moments under load; what it acknowledged is there when it starts again."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.errors import QuarryError, RpcError
from agent.nvmf.initiator import connect
from agent.spdk.client import Client

MIB = 1024 * 1024
MOST_LVOLS = 12
ROUNDS = 12
HOST = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555"
NQN = "nqn.2026-11.storage.quarry:vol:crash"


class Process:
    """The embedded target as a child process."""

    def __init__(self, directory: Path, disk: Path) -> None:
        self.socket_path = directory / "rpc.sock"
        self.disk = disk
        self._state = directory / "state"
        self._log = directory / "log"
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = ["--rpc-socket", str(self.socket_path), "--state-dir", str(self._state)]
        command = [sys.executable, "-m", "agent.embedded.main", *arguments, "--nvmf-address", "127.0.0.1"]
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(command, stderr=log, stdout=log)

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Returns the exit code."""
        if self._child is None:
            return 0
        self._child.send_signal(number)
        code = self._child.wait(timeout=20)
        self._child = None
        return code

    def log(self) -> str:
        return self._log.read_text()


@pytest.fixture
def process(socket_dir: Path, tmp_path: Path) -> Iterator[Process]:
    disk = tmp_path / "disk.img"
    with disk.open("wb") as file:
        file.truncate(256 * MIB)
    made = Process(socket_dir, disk)
    made.start()
    yield made
    made.kill()


async def open_disk(process: Process, *, create: bool) -> Client:
    client = Client(process.socket_path, call_timeout_s=20, reconnect_min_s=0.01, reconnect_max_s=0.05)
    await client.start()
    await client.wait_connected(20)
    await client.call("bdev_aio_create", {"name": "disk", "filename": str(process.disk), "block_size": 4096})
    if create:
        params = {"bdev_name": "disk", "lvs_name": "pool", "cluster_sz": MIB, "num_md_pages_per_cluster_ratio": 300}
        await client.call("bdev_lvol_create_lvstore", params)
    return client


class Worker:
    """Creates, changes and deletes lvols of its own; knows which states the target may have after a crash.

    `states` holds the state that was acknowledged last and, while a call is under way, the one it leads to. A state
    is what is visible: name -> (size in MiB, name of the snapshot below or None).
    """

    def __init__(self, number: int, seed: int) -> None:
        self.prefix = f"w{number}-"
        self.random = random.Random(seed)
        self.states: list[dict[str, tuple[int, str | None]]] = [{}]
        self.count = 0

    async def run(self, client: Client) -> None:
        while True:
            now = self.states[0]
            method, params, then = self.choose(now)
            self.states = [now, then]
            try:
                await client.call(method, params)
            except RpcError as error:
                raise AssertionError(f"{method} {params} on {now}: {error}") from error
            self.states = [then]

    def choose(self, now: dict[str, tuple[int, str | None]]) -> tuple[str, dict[str, Any], dict[str, Any]]:
        origins = [name for name in now if "snap" not in name]
        self.count += 1
        fresh = f"{self.prefix}{self.count}"
        if len(origins) < 3 or (len(now) < MOST_LVOLS and self.random.random() < 0.2):
            size = self.random.randrange(1, 5)
            params = {"lvs_name": "pool", "lvol_name": fresh, "size_in_mib": size, "thin_provision": True}
            return "bdev_lvol_create", params, {**now, fresh: (size, None)}
        name = self.random.choice(origins)
        size, parent = now[name]
        what = self.random.randrange(4) if len(now) < MOST_LVOLS else 3
        if what == 0:
            new = self.random.randrange(1, 6)
            return "bdev_lvol_resize", {"name": f"pool/{name}", "size_in_mib": new}, {**now, name: (new, parent)}
        if what == 1 and parent is None:
            snap = f"{fresh}-snap"
            params = {"lvol_name": f"pool/{name}", "snapshot_name": snap}
            return "bdev_lvol_snapshot", params, {**now, snap: (size, None), name: (size, snap)}
        if what == 2:
            renamed = {fresh if key == name else key: value for key, value in now.items()}
            return "bdev_lvol_rename", {"old_name": f"pool/{name}", "new_name": fresh}, renamed
        gone = parent or name
        left = {key: (value[0], None if value[1] == gone else value[1]) for key, value in now.items() if key != gone}
        return "bdev_lvol_delete", {"name": f"pool/{gone}"}, left


async def visible(client: Client) -> dict[str, tuple[int, str | None]]:
    """The lvols of the pool as `Worker` describes them, after checks that hold for any pool."""
    found: dict[str, tuple[int, str | None]] = {}
    files = []
    for info in await client.call("bdev_get_bdevs"):
        if info["product_name"] == "Logical Volume":
            specific = info["driver_specific"]["lvol"]
            name = info["aliases"][0].removeprefix("pool/")
            found[name] = (info["num_blocks"] * 4096 // MIB, specific.get("base_snapshot"))
            files.append(Path(info["driver_specific"]["embedded"]["file"]))
            assert files[-1].stat().st_size == info["num_blocks"] * 4096
    lvols = await client.call("bdev_lvol_get_lvols", {"lvs_name": "pool"})
    assert {lvol["name"] for lvol in lvols} == found.keys()
    (store,) = await client.call("bdev_lvol_get_lvstores")
    used = sum(lvol["num_allocated_clusters"] for lvol in lvols)
    assert store["free_clusters"] == store["total_data_clusters"] - used
    if files:
        assert set(files[0].parent.glob("*.data")) == set(files), "no leftovers"
    return found


@pytest.mark.timeout(240)
async def test_killed_at_any_moment_no_acknowledged_change_is_lost(process: Process) -> None:
    client = await open_disk(process, create=True)
    chance = random.Random(1)
    workers = [Worker(number, number) for number in range(6)]
    for _ in range(ROUNDS):
        tasks = [asyncio.create_task(worker.run(client)) for worker in workers]
        await asyncio.sleep(chance.uniform(0.02, 0.4))
        assert process.kill() == -signal.SIGKILL
        await client.close()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, QuarryError), result
        process.start()
        client = await open_disk(process, create=False)
        found = await visible(client)
        for worker in workers:
            mine = {name: value for name, value in found.items() if name.startswith(worker.prefix)}
            assert mine in worker.states, process.log()[-2000:]
            worker.states = [mine]
    await client.close()
    assert sum(worker.count for worker in workers) > 10 * ROUNDS


async def test_killed_under_writes_what_was_acknowledged_is_read_back(process: Process) -> None:
    client = await open_disk(process, create=True)
    volume = {"lvs_name": "pool", "lvol_name": "v", "size_in_mib": 32, "thin_provision": True}
    await client.call("bdev_lvol_create", volume)
    acknowledged: dict[int, int] = {}
    number = 0
    for round_number in range(5):
        port = await export(client)
        controller = await connect("127.0.0.1", port, NQN, HOST)
        for block, value in acknowledged.items():
            data = await controller.read(1, block * 4096, 4096)
            assert int.from_bytes(data[:8], "little") >= value, f"block {block} in round {round_number}"
            assert data == data[:8] * 512
        killer = asyncio.get_running_loop().call_later(0.1 + 0.05 * round_number, process.kill)
        with pytest.raises(QuarryError):
            while True:
                number += 1
                block = number * 37 % 8192
                await controller.write(1, block * 4096, number.to_bytes(8, "little") * 512)
                acknowledged[block] = number
        killer.cancel()
        await controller.close()
        await client.close()
        process.start()
        client = await open_disk(process, create=False)
    await client.close()
    assert number > 100


async def export(client: Client) -> int:
    """Returns the port."""
    await client.call("nvmf_create_transport", {"trtype": "TCP"})
    await client.call("nvmf_create_subsystem", {"nqn": NQN, "serial_number": "S", "allow_any_host": True})
    await client.call("nvmf_subsystem_add_ns", {"nqn": NQN, "namespace": {"bdev_name": "pool/v"}})
    for port in range(14420, 14520):
        address = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(port)}
        try:
            await client.call("nvmf_subsystem_add_listener", {"nqn": NQN, "listen_address": address})
        except RpcError:
            continue
        return port
    raise AssertionError("no free port")


async def test_it_forgets_bdevs_and_exports_and_ends_cleanly_when_asked(process: Process) -> None:
    client = await open_disk(process, create=True)
    await client.call("bdev_lvol_create", {"lvs_name": "pool", "lvol_name": "v", "size_in_mib": 1})
    await client.call("bdev_malloc_create", {"name": "m", "num_blocks": 256, "block_size": 4096})
    await export(client)
    await client.close()
    assert process.kill(signal.SIGTERM) == 0
    assert not process.socket_path.exists()
    assert "development, demos and tests" in process.log()
    process.start()
    client = Client(process.socket_path)
    await client.start()
    await client.wait_connected(20)
    assert await client.call("bdev_get_bdevs") == []
    assert [s["subtype"] for s in await client.call("nvmf_get_subsystems")] == ["Discovery"]
    await client.close()
    client = await open_disk(process, create=False)
    assert (await visible(client)).keys() == {"v"}
    await client.close()


def test_a_second_target_on_the_same_socket_or_state_is_refused(process: Process, socket_dir: Path) -> None:
    deadline = time.monotonic() + 20
    while not process.socket_path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    for socket_name, state, says in (
        ("rpc.sock", "other", b"another process already serves"),
        ("other.sock", "state", b"in use by another target"),
    ):
        arguments = ["--rpc-socket", str(socket_dir / socket_name), "--state-dir", str(socket_dir / state)]
        command = [sys.executable, "-m", "agent.embedded.main", *arguments]
        ended = subprocess.run(command, capture_output=True, timeout=20, check=False)
        assert ended.returncode != 0
        assert says in ended.stderr
    assert process.kill(signal.SIGTERM) == 0
