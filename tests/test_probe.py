"""`quarry probe` as a user runs it, against an export of the embedded target."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from agent.cli.exit_codes import ExitCode
from agent.spdk import bdev, nvmf
from agent.spdk.client import Client

from .contract.targets import ADDRESS, Target, free_port

MIB = 1 << 20
NQN = "nqn.2026-11.storage.quarry:vol:probe"
HOST = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555"


@pytest.fixture
def target() -> Iterator[Target]:
    target = Target("embedded")
    try:
        target.start()
        yield target
    finally:
        target.close()


async def export(target: Target) -> int:
    """Export a namespace of 8 MiB to HOST; returns the port."""
    rpc, port = Client(target.socket_path), free_port()
    await rpc.start()
    try:
        await rpc.wait_connected(10)
        await bdev.aio_create(rpc, "disk", str(target.disk("disk", 8 * MIB)), 4096)
        await nvmf.create_transport(rpc)
        await nvmf.create_subsystem(rpc, NQN, "SERIAL7", "Model 7")
        await nvmf.add_namespace(rpc, NQN, "disk", uuid="aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee")
        await nvmf.add_listener(rpc, NQN, ADDRESS, port)
        await nvmf.add_host(rpc, NQN, HOST)
    finally:
        await rpc.close()
    return port


def probe(port: int, *args: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "agent.cli.main", "probe", f"{ADDRESS}:{port}", NQN, *args]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)


async def test_an_export_is_described_and_timed(target: Target) -> None:
    port = await export(target)
    done = probe(port, "--host-nqn", HOST, "--samples", "7", "-o", "json")
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert facts["controller"]["serial"] == "SERIAL7"
    (namespace,) = facts["namespaces"]
    assert namespace == {
        "nsid": 1,
        "uuid": "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee",
        "size_bytes": 8 * MIB,
        "block_bytes": 4096,
    }
    assert facts["reads"] == 7
    times = facts["read_seconds"]
    assert 0 < times["p50"] <= times["p90"] <= times["p99"] <= times["p100"]

    table = probe(port, "--host-nqn", HOST)
    assert table.returncode == 0
    assert "8 MiB" in table.stdout
    assert "Model 7" in table.stdout
    assert "(100 reads)" in table.stdout


async def test_a_host_that_is_not_let_in_is_told_so_in_one_line(target: Target) -> None:
    done = probe(await export(target))
    assert done.returncode == ExitCode.PRECONDITION
    assert done.stdout == ""
    assert NQN in done.stderr
    assert done.stderr.count("\n") == 1
