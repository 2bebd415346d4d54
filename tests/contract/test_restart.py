"""What a target forgets and what survives when it is killed and started again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from agent.nvmf import initiator
from agent.spdk import app, bdev, lvol, nvmf
from agent.spdk.client import Client

from .conftest import BLOCK, HOST, MIB, Pool
from .targets import ADDRESS, Target
from .waiting import reconnected, refused

Export = Callable[..., Awaitable[str]]


async def restart(rpc: Client, target: Target) -> None:
    generation = rpc.generation
    target.restart()
    await reconnected(rpc, target.pid)
    assert rpc.generation > generation


async def test_kill_forgets_exports_and_keeps_volumes(
    rpc: Client, target: Target, pool: Pool, export: Export, port: int
) -> None:
    thin = await lvol.create(rpc, pool.name, "thin", 16 * MIB)
    thick = await lvol.create(rpc, pool.name, "thick", 8 * MIB, thin=False, clear_method="none")
    nqn = await export(f"{pool.name}/thin")
    host = await initiator.connect(ADDRESS, port, nqn, HOST)
    await host.write(1, MIB, b"\x42" * MIB)
    await host.flush(1)
    await lvol.snapshot(rpc, f"{pool.name}/thin", "s")
    await lvol.clone(rpc, f"{pool.name}/s", "c")
    await lvol.set_read_only(rpc, f"{pool.name}/thick")
    await lvol.resize(rpc, f"{pool.name}/thin", 32 * MIB)
    await host.close()
    before = await lvol.get_lvstore(rpc, pool.name)

    await restart(rpc, target)
    assert await bdev.list_all(rpc) == []
    assert await nvmf.get_transport(rpc) is None
    assert [s.nqn for s in await nvmf.list_subsystems(rpc)] == [nvmf.DISCOVERY_NQN]
    assert await lvol.list_lvstores(rpc) == []

    await bdev.aio_create(rpc, pool.bdev, pool.file, BLOCK)
    await bdev.wait_for_examine(rpc)
    assert await lvol.get_lvstore(rpc, pool.name) == before
    lvols = {v.name: v for v in await lvol.list_lvols(rpc, pool.name)}
    assert set(lvols) == {"thin", "thick", "s", "c"}
    assert (lvols["thin"].uuid, lvols["thick"].uuid) == (thin, thick)
    assert [lvols[n].is_clone for n in ("thin", "thick", "s", "c")] == [True, False, False, True]
    assert lvols["s"].is_snapshot and not lvols["thick"].is_thin_provisioned
    resized = await bdev.get(rpc, thin)
    assert resized is not None and resized.size_bytes == 32 * MIB
    assert await refused(lvol.resize(rpc, thick, 16 * MIB)) == -32602  # still read-only

    for name in ("thin", "c"):
        nqn = await export(f"{pool.name}/{name}")
        host = await initiator.connect(ADDRESS, port, nqn, HOST)
        assert await host.read(1, MIB, MIB) == b"\x42" * MIB
        assert await host.read(1, 2 * MIB, 4096) == bytes(4096)
        await host.close()


async def test_kill_in_the_middle_of_many_calls(rpc: Client, target: Target, pool: Pool) -> None:
    """Every lvol whose creation was answered is there afterwards, and the pool works."""
    answered: dict[str, str] = {}
    enough = asyncio.Event()

    async def create(number: int) -> None:
        answered[f"v{number}"] = await lvol.create(rpc, pool.name, f"v{number}", MIB)
        if len(answered) >= 20:
            enough.set()

    calls = [asyncio.create_task(create(number)) for number in range(60)]
    async with asyncio.timeout(30):
        await enough.wait()
    await restart(rpc, target)
    await asyncio.gather(*calls, return_exceptions=True)
    await bdev.aio_create(rpc, pool.bdev, pool.file, BLOCK)
    await bdev.wait_for_examine(rpc)
    found = {v.name: v.uuid for v in await lvol.list_lvols(rpc, pool.name)}
    assert answered.items() <= found.items()
    await asyncio.gather(*(lvol.delete(rpc, uuid) for uuid in found.values()))
    info = await lvol.get_lvstore(rpc, pool.name)
    assert info is not None and info.free_clusters == info.total_data_clusters


async def test_sigterm_ends_the_target_cleanly(rpc: Client, target: Target) -> None:
    try:
        assert target.terminate() == 0
        assert not await asyncio.to_thread(target.socket_path.exists)
    finally:
        target.start()
    await reconnected(rpc, target.pid)
    assert await app.version(rpc)
