"""SPDK's own Python client, the `spdk` package of PyPI, works against the target: as a library and as a command."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import BLOCK, HOST, MIB, NQN_PREFIX
from .targets import ADDRESS, Target

spdk_client = pytest.importorskip("spdk.rpc.client", reason="the spdk package is not installed")

SPDK_RPC = Path(sys.executable).with_name("spdk-rpc")


async def spdk_rpc(target: Target, *arguments: str) -> tuple[int, str]:
    """Exit code and output of the command, which prints a target's error answer to stdout."""
    process = await asyncio.create_subprocess_exec(
        str(SPDK_RPC),
        *("-s", str(target.socket_path), *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


@pytest.mark.skipif(not SPDK_RPC.exists(), reason="the spdk-rpc command is not installed")
async def test_command(target: Target, name: Callable[[str], str], port: int) -> None:
    disk, pool, nqn = name("d"), name("pool"), NQN_PREFIX + name("v")
    file = str(target.disk(disk, 256 * MIB))

    async def run(*arguments: str) -> str:
        code, text = await spdk_rpc(target, *arguments)
        assert code == 0, text
        return text.strip()

    assert "SPDK v26." in await run("spdk_get_version")
    assert await run("bdev_aio_create", file, disk, str(BLOCK)) == disk
    lvstore = await run("bdev_lvol_create_lvstore", disk, pool, "-c", str(MIB), "--clear-method", "none")
    volume = await run("bdev_lvol_create", "-l", pool, "-t", "v", "16")
    (found,) = json.loads(await run("bdev_get_bdevs", "-b", f"{pool}/v"))
    assert (found["name"], found["num_blocks"]) == (volume, 16 * MIB // BLOCK)
    assert [s["uuid"] for s in json.loads(await run("bdev_lvol_get_lvstores", "-l", pool))] == [lvstore]
    await run("bdev_lvol_resize", f"{pool}/v", "32")
    await run("bdev_lvol_snapshot", f"{pool}/v", "s")
    if not json.loads(await run("nvmf_get_transports")):
        await run("nvmf_create_transport", "-t", "TCP")
    await run("nvmf_create_subsystem", nqn, "-s", "SERIAL", "-d", "Model", "-r", "-m", "1")
    await run("nvmf_subsystem_add_ns", nqn, f"{pool}/v")
    await run("nvmf_subsystem_add_host", nqn, HOST)
    await run("nvmf_subsystem_add_listener", nqn, "-t", "TCP", "-f", "IPv4", "-a", ADDRESS, "-s", str(port))
    (subsystem,) = [s for s in json.loads(await run("nvmf_get_subsystems")) if s["nqn"] == nqn]
    assert subsystem["namespaces"][0]["uuid"] == volume
    await run("nvmf_delete_subsystem", nqn)

    code, text = await spdk_rpc(target, "bdev_lvol_delete", f"{pool}/none")
    assert code != 0 and "No such device" in text
    await run("bdev_lvol_delete_lvstore", "-l", pool)
    await run("bdev_aio_delete", disk)


async def test_library(target: Target, name: Callable[[str], str]) -> None:
    disk = name("m")

    def talk() -> list[dict[str, Any]]:
        with spdk_client.JSONRPCClient(str(target.socket_path), timeout=30.0) as client:
            assert client.call("bdev_malloc_create", {"name": disk, "num_blocks": 256, "block_size": 4096}) == disk
            found = client.call("bdev_get_bdevs", {"name": disk})
            client.call("bdev_malloc_delete", {"name": disk})
            with pytest.raises(spdk_client.JSONRPCException, match="No such device"):
                client.call("bdev_get_bdevs", {"name": disk})
            assert isinstance(found, list)
            return found

    (found,) = await asyncio.to_thread(talk)
    assert (found["name"], found["num_blocks"], found["product_name"]) == (disk, 256, "Malloc disk")


async def test_library_many_calls_in_one_go(target: Target) -> None:
    """The client's own pipelining: requests are queued, sent together, and answered."""

    def talk() -> int:
        with spdk_client.JSONRPCClient(str(target.socket_path), timeout=30.0) as client:
            for _ in range(50):
                client.add_request("framework_wait_init", None)
            client.flush()
            answers = 0
            while answers < 50:
                assert client.recv()["result"] is True
                answers += 1
            return answers

    assert await asyncio.to_thread(talk) == 50
