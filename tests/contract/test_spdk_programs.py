"""SPDK's own programs as hosts of the target: spdk_nvme_identify, spdk_nvme_perf, and spdk_tgt as an initiator."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from agent.nvmf import initiator
from agent.spdk import app, bdev, lvol, nvme_controller, nvmf
from agent.spdk.client import Client

from .conftest import HOST, MIB, NQN_PREFIX, OTHER_HOST, Pool, ensure_transport
from .targets import ADDRESS, Target, find_spdk_tgt, free_port

Export = Callable[..., Awaitable[str]]
PROGRAM_TIMEOUT_S = 60.0


def find_program(name: str) -> str | None:
    """Beside the real target, else on PATH."""
    target = find_spdk_tgt()
    beside = Path(target).resolve().with_name(name) if target else None
    return str(beside) if beside and os.access(beside, os.X_OK) else shutil.which(name)


async def run(program: str, *arguments: str) -> tuple[int, str]:
    """Exit code and output of one of SPDK's programs, run without hugepages on the last core."""
    path = find_program(program)
    if path is None:
        pytest.skip(f"{program} not found (beside spdk_tgt or PATH)")
    process = await asyncio.create_subprocess_exec(
        path, "--no-huge", "-s", "256", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(PROGRAM_TIMEOUT_S):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, output.decode(errors="replace")


def path_to(nqn: str, port: int, host: str = HOST) -> str:
    return f"trtype:TCP adrfam:IPv4 traddr:{ADDRESS} trsvcid:{port} subnqn:{nqn} hostnqn:{host}"


@pytest.fixture
async def open_to_all(rpc: Client, pool: Pool, port: int, name: Callable[[str], str]) -> AsyncIterator[tuple[str, str]]:
    """NQN and volume UUID of a subsystem open to any host: spdk_nvme_identify v26.05 overlooks its `hostnqn`."""
    await ensure_transport(rpc)
    nqn = NQN_PREFIX + name("open")
    uuid = await lvol.create(rpc, pool.name, "v", 16 * MIB)
    await rpc.call(
        "nvmf_create_subsystem",
        {"nqn": nqn, "serial_number": "SERIAL", "model_number": "Quarry volume", "allow_any_host": True},
    )
    await nvmf.add_namespace(rpc, nqn, uuid)
    await nvmf.add_listener(rpc, nqn, ADDRESS, port)
    yield nqn, uuid
    await nvmf.delete_subsystem(rpc, nqn)


async def test_identify(rpc: Client, open_to_all: tuple[str, str], pool: Pool, export: Export, port: int) -> None:
    nqn, uuid = open_to_all
    code, output = await run("spdk_nvme_identify", "-r", path_to(nqn, port))
    assert code == 0, output
    assert nqn in output
    assert "SERIAL" in output and "Quarry volume" in output
    assert uuid in output.lower()
    await lvol.create(rpc, pool.name, "w", 16 * MIB)
    closed = await export(f"{pool.name}/w")
    code, output = await run("spdk_nvme_identify", "-r", path_to(closed, port))
    assert code != 0 and "sct 1, sc 132" in output  # Connect Invalid Host


async def test_discovery(rpc: Client, open_to_all: tuple[str, str], pool: Pool, export: Export, port: int) -> None:
    """A host that asks the discovery subsystem is told of the subsystems it may use, and of no other."""
    await lvol.create(rpc, pool.name, "w", 16 * MIB)
    closed = await export(f"{pool.name}/w")
    await nvmf.add_listener(rpc, nvmf.DISCOVERY_NQN, ADDRESS, port)
    try:
        code, output = await run("spdk_nvme_identify", "-r", path_to(nvmf.DISCOVERY_NQN, port))
        assert code == 0, output
        assert open_to_all[0] in output
        assert closed not in output
    finally:
        await nvmf.remove_listener(rpc, nvmf.DISCOVERY_NQN, ADDRESS, port)


@pytest.mark.parametrize("workload", ["randrw", "write"])
async def test_perf(rpc: Client, pool: Pool, export: Export, port: int, workload: str) -> None:
    uuid = await lvol.create(rpc, pool.name, "v", 64 * MIB)
    nqn = await export(f"{pool.name}/v")
    mix = ("-M", "50") if workload == "randrw" else ()
    size = "4096" if workload == "randrw" else "262144"  # beyond in-capsule data and beyond one transfer
    code, output = await run(
        "spdk_nvme_perf", "-q", "8", "-o", size, "-w", workload, *mix, "-t", "1", "-r", path_to(nqn, port)
    )
    assert code == 0, output
    assert "Total" in output
    assert "completed with error" not in output and "Failed" not in output, output
    stats = (await bdev.iostat(rpc, [uuid])).bdevs[0]
    assert stats.num_write_ops > 8
    assert stats.num_read_ops > 8 or workload == "write"


@pytest.fixture
def spdk(request: pytest.FixtureRequest, kind: str) -> Iterator[Target]:
    """A real spdk_tgt as host."""
    if find_spdk_tgt() is None:
        pytest.skip("spdk_tgt not found (SPDK_TGT or PATH)")
    if kind == "real":
        yield request.getfixturevalue("peer")
        return
    target = Target("real", 1)
    try:
        target.start()
        yield target
    finally:
        target.close()


@pytest.fixture
async def spdk_rpc(spdk: Target) -> AsyncIterator[Client]:
    async with Client(spdk.socket_path, call_timeout_s=30.0) as client:
        await client.wait_connected(30)
        await app.wait_init(client)
        yield client


async def test_spdk_as_host_writes_what_another_path_reads(
    rpc: Client, spdk_rpc: Client, pool: Pool, export: Export, port: int
) -> None:
    """Data written through SPDK's initiator are read back through the target's other subsystem path, and back."""
    uuid = await lvol.create(rpc, pool.name, "v", 16 * MIB)
    nqn = await export(f"{pool.name}/v", HOST, OTHER_HOST)
    assert await nvme_controller.attach(spdk_rpc, "r", ADDRESS, port, nqn, hostnqn=HOST) == ["rn1"]
    found = await bdev.get(spdk_rpc, "rn1")
    assert found is not None and (found.uuid, found.size_bytes) == (uuid, 16 * MIB)

    onward, onward_port = NQN_PREFIX + "onward", free_port()
    await ensure_transport(spdk_rpc)
    await nvmf.create_subsystem(spdk_rpc, onward, "S", "M")
    await nvmf.add_namespace(spdk_rpc, onward, "rn1")
    await nvmf.add_host(spdk_rpc, onward, HOST)
    await nvmf.add_listener(spdk_rpc, onward, ADDRESS, onward_port)
    through_spdk = await initiator.connect(ADDRESS, onward_port, onward, HOST)
    direct = await initiator.connect(ADDRESS, port, nqn, OTHER_HOST)
    try:
        data = os.urandom(3 * MIB)
        await through_spdk.write(1, MIB, data)
        assert await direct.read(1, MIB, len(data)) == data
        await direct.write(1, 8 * MIB, data)
        assert await through_spdk.read(1, 8 * MIB, len(data)) == data
        await through_spdk.unmap(1, MIB, MIB)
        assert await direct.read(1, MIB, 2 * MIB) == bytes(MIB) + data[MIB : 2 * MIB]
    finally:
        await direct.close()
        await through_spdk.close()
        await nvmf.delete_subsystem(spdk_rpc, onward)
        await nvme_controller.detach(spdk_rpc, "r")
