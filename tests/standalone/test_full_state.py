"""The filesystem of the state folder is full: told as that, what is stored is served, also after a restart."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from agent.csi.client import CallFailed
from agent.nvmf import initiator
from tests.contract.targets import free_port
from tests.contract.waiting import until
from tests.crash.machine import NODE, Machine, Patient
from tests.diag.asking import Answer, ask

MIB = 1 << 20
TIER = {"tier": "ssd"}

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts a tmpfs of 3 MiB as state folder"),
]


@pytest.fixture
def state(machine: Machine) -> Iterator[Path]:
    folder = machine.folder / "agent"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], check=True)
    yield folder
    machine.close()
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Until not even a byte finds room; SQLite's log and its index are files of their own that come and go."""
    for number in range(8):
        with contextlib.suppress(OSError), (folder / f"fill{number}").open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
    assert os.statvfs(folder).f_bfree == 0


def empty(folder: Path) -> None:
    for each in folder.glob("fill*"):
        each.unlink()


async def read_first_block(context: dict[str, str]) -> bytes:
    host = await initiator.connect(context["address"], int(context["port"]), context["nqn"], context["hostNqn"])
    try:
        return await host.read(1, 0, 4096)
    finally:
        await host.close()


async def names_of_volumes(state: Path) -> set[str]:
    """As `quarry volumes list` has them, which finds the agent by its state folder; empty when it does not."""
    argv = [sys.executable, "-m", "agent.cli.main", "volumes", "list", "-o", "json", "--state-dir", str(state)]
    done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, timeout=60)
    return {each["spec"]["csi_name"] for each in json.loads(done.stdout)} if done.returncode == 0 else set()


async def test_a_full_state_folder_is_told_and_what_is_stored_is_served(machine: Machine, state: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    config = f"{{http_address: '{url.removeprefix('http://')}', rpc: {{heartbeat_interval_s: 0.3}}}}"
    machine.start_agent(config)
    csi = Patient(machine.endpoint)

    async def ready() -> Answer:
        return await ask(url, "/readyz")

    try:
        await csi.wait_ready()
        volume = await csi.call("create_volume", "kept", 64 * MIB, TIER)
        context = await csi.call("publish", volume, NODE)
        host = await initiator.connect(context["address"], int(context["port"]), context["nqn"], context["hostNqn"])
        await host.write(1, 0, b"kept" * 1024)
        await host.close()

        fill(state)
        told = await ready()
        assert told.status == 503
        assert [each["part"] for each in told.json["reasons"]] == ["state"]
        assert str(state) in told.text
        assert "full" in told.text
        assert "free some there" in told.text
        alive = await ask(url, "/healthz")
        assert (alive.status, "full" in alive.text) == (200, True)  # another process would not mend it
        assert await csi.call("probe") is False
        with pytest.raises(CallFailed, match=r"is full .* free some there") as refused:
            await csi.client.create_volume("more", 64 * MIB, TIER)
        assert refused.value.code is grpc.StatusCode.UNAVAILABLE

        # The target, then the agent, come back: what is stored is served again though nothing can be recorded.
        machine.target.kill()
        machine.target.start()
        await until(ready, lambda seen: [each["part"] for each in seen.json["reasons"]] == ["state"])
        assert (await read_first_block(context))[:4] == b"kept"
        empty(state)
        await until(ready, lambda seen: seen.status == 200)
        assert machine.stop_agent() == 0
        fill(state)
        assert not (state / "quarry.db-shm").exists(), "the index of the log is what a start has no room for"
        machine.start_agent(config)
        assert await csi.call("publish", volume, NODE) == context
        await until(ready, lambda seen: [each["part"] for each in seen.json["reasons"]] == ["state"])
        assert (await read_first_block(context))[:4] == b"kept"
        with pytest.raises(CallFailed, match="is full"):
            await csi.client.create_volume("more", 64 * MIB, TIER)

        empty(state)
        await until(ready, lambda seen: seen.status == 200)
        assert await csi.call("probe") is True
        await csi.call("create_volume", "more", 64 * MIB, TIER)
        await until(lambda: names_of_volumes(state), lambda names: names == {"kept", "more"})
    finally:
        await csi.close()
