"""Subsystems, namespaces, hosts, listeners, ANA; who gets in; what a connected host sees."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from agent.errors import FailedPrecondition, QuarryError
from agent.nvmf import initiator
from agent.spdk import bdev, lvol, nvmf
from agent.spdk.client import Client

from .conftest import HOST, MIB, NQN_PREFIX, OTHER_HOST, Pool, ensure_transport
from .targets import ADDRESS
from .waiting import refused, until

Name = Callable[[str], str]
Export = Callable[..., Awaitable[str]]


async def test_transport(rpc: Client) -> None:
    await ensure_transport(rpc)
    info = await nvmf.get_transport(rpc)
    assert info is not None
    assert (info.trtype, info.max_queue_depth, info.in_capsule_data_size) == ("TCP", 128, 4096)
    assert (info.max_io_size, info.max_io_qpairs_per_ctrlr) == (131072, 127)
    assert await refused(nvmf.create_transport(rpc)) == -32603
    assert await nvmf.get_transport(rpc, "RDMA") is None


async def test_life_of_a_subsystem(rpc: Client, name: Name, pool: Pool, port: int) -> None:
    await ensure_transport(rpc)
    nqn = NQN_PREFIX + name("v")
    uuid = await lvol.create(rpc, pool.name, "v", 16 * MIB)
    await nvmf.create_subsystem(rpc, nqn, "QV1", "Quarry volume")
    found = await nvmf.get_subsystem(rpc, nqn)
    assert found == nvmf.SubsystemInfo(
        nqn, "NVMe", False, serial_number="QV1", model_number="Quarry volume", max_namespaces=1
    )
    assert await nvmf.add_namespace(rpc, nqn, f"{pool.name}/v") == 1
    await nvmf.add_host(rpc, nqn, HOST)
    await nvmf.add_listener(rpc, nqn, ADDRESS, port)
    found = await nvmf.get_subsystem(rpc, nqn)
    assert found is not None
    assert found.host_nqns == (HOST,)
    assert found.listen_addresses == (nvmf.Address("TCP", ADDRESS, str(port), "IPv4"),)
    (namespace,) = found.namespaces
    assert (namespace.nsid, namespace.bdev_name, namespace.uuid) == (1, uuid, uuid)
    assert namespace.nguid == uuid.replace("-", "").upper()
    assert found in await nvmf.list_subsystems(rpc)
    exported = await bdev.get(rpc, uuid)
    assert exported is not None and exported.claimed

    await nvmf.remove_listener(rpc, nqn, ADDRESS, port)
    await nvmf.remove_host(rpc, nqn, HOST)
    await nvmf.remove_namespace(rpc, nqn, 1)
    found = await nvmf.get_subsystem(rpc, nqn)
    assert found is not None
    assert (found.host_nqns, found.listen_addresses, found.namespaces) == ((), (), ())
    await nvmf.delete_subsystem(rpc, nqn)
    assert await nvmf.get_subsystem(rpc, nqn) is None
    assert await refused(nvmf.delete_subsystem(rpc, nqn)) == -32602


async def test_discovery_subsystem_is_always_there(rpc: Client) -> None:
    found = await nvmf.get_subsystem(rpc, nvmf.DISCOVERY_NQN)
    assert found is not None and (found.subtype, found.allow_any_host) == ("Discovery", True)


async def test_subsystem_refusals(rpc: Client, name: Name) -> None:
    nqn = NQN_PREFIX + name("v")
    await nvmf.create_subsystem(rpc, nqn, "S" * 20, "M")
    assert await refused(nvmf.create_subsystem(rpc, nqn, "S", "M")) == -32603
    assert await refused(nvmf.create_subsystem(rpc, "not-an-nqn", "S", "M")) == -32603
    assert await refused(nvmf.create_subsystem(rpc, nqn + "2", "S" * 21, "M")) == -32602
    assert await refused(nvmf.create_subsystem(rpc, NQN_PREFIX + "x" * 300, "S", "M")) == -32603
    await nvmf.delete_subsystem(rpc, nqn)


async def test_namespace_refusals(rpc: Client, pool: Pool, export: Export) -> None:
    await lvol.create(rpc, pool.name, "v", 16 * MIB)
    await lvol.create(rpc, pool.name, "w", 16 * MIB)
    nqn = await export(f"{pool.name}/v")
    for where, what in [(nqn, f"{pool.name}/v"), (nqn, f"{pool.name}/w"), (nqn, "none"), (nqn + "none", "x")]:
        assert await refused(nvmf.add_namespace(rpc, where, what)) == -32602
    assert await refused(nvmf.remove_namespace(rpc, nqn, 9)) == -32602
    other = await export(f"{pool.name}/w")
    await nvmf.remove_namespace(rpc, other, 1)
    assert await refused(nvmf.add_namespace(rpc, other, f"{pool.name}/v")) == -32602  # one subsystem at a time


async def test_host_and_listener_refusals(rpc: Client, pool: Pool, export: Export, port: int) -> None:
    await lvol.create(rpc, pool.name, "v", 16 * MIB)
    nqn = await export(f"{pool.name}/v")
    assert await refused(nvmf.add_host(rpc, nqn, HOST)) == -32603
    assert await refused(nvmf.add_host(rpc, nqn, "bad")) == -32603
    assert await refused(nvmf.add_host(rpc, nqn + "none", HOST)) == -32602
    assert await refused(nvmf.remove_host(rpc, nqn, OTHER_HOST)) == -32603
    assert await refused(nvmf.add_listener(rpc, nqn, ADDRESS, port)) == -32602
    assert await refused(nvmf.add_listener(rpc, nqn, "203.0.113.9", port)) == -32602
    assert await refused(nvmf.remove_listener(rpc, nqn, ADDRESS, 9)) == -32602


async def test_ana_states_of_a_listener(rpc: Client, pool: Pool, export: Export, port: int) -> None:
    await lvol.create(rpc, pool.name, "v", 16 * MIB)
    nqn = await export(f"{pool.name}/v")
    for state in (None, nvmf.AnaState.INACCESSIBLE, nvmf.AnaState.NON_OPTIMIZED, nvmf.AnaState.OPTIMIZED):
        if state is not None:
            await nvmf.set_ana_state(rpc, nqn, ADDRESS, port, state)
        (listener,) = await nvmf.get_listeners(rpc, nqn)
        assert listener.address == nvmf.Address("TCP", ADDRESS, str(port), "IPv4")
        assert [g.ana_state for g in listener.ana_states] == [state or nvmf.AnaState.OPTIMIZED]


async def test_deleting_an_exported_lvol_takes_its_namespace_away(rpc: Client, pool: Pool, export: Export) -> None:
    await lvol.create(rpc, pool.name, "v", 16 * MIB)
    nqn = await export(f"{pool.name}/v")
    await lvol.delete(rpc, f"{pool.name}/v")
    found = await nvmf.get_subsystem(rpc, nqn)
    assert found is not None and found.namespaces == ()


# --- through the data path ---


async def test_data_and_who_may_reach_them(rpc: Client, pool: Pool, export: Export, port: int) -> None:
    uuid = await lvol.create(rpc, pool.name, "v", 16 * MIB)
    nqn = await export(f"{pool.name}/v")
    with pytest.raises(FailedPrecondition):
        await initiator.connect(ADDRESS, port, nqn, OTHER_HOST)
    assert await nvmf.get_controllers(rpc, nqn) == []

    host = await initiator.connect(ADDRESS, port, nqn, HOST)
    (namespace,) = await host.namespaces()
    assert (namespace.nsid, namespace.uuid, namespace.size_bytes) == (1, uuid, 16 * MIB)
    pattern = bytes(range(256)) * 512
    before = (await bdev.iostat(rpc, [uuid])).bdevs[0]
    await host.write(1, 3 * MIB, pattern)
    assert await host.read(1, 3 * MIB, len(pattern)) == pattern
    await host.write_zeroes(1, 3 * MIB, 8192)
    assert await host.read(1, 3 * MIB, 16384) == bytes(8192) + pattern[8192:16384]
    (controller,) = await nvmf.get_controllers(rpc, nqn)
    assert controller.hostnqn == HOST
    qpairs = await nvmf.get_qpairs(rpc, nqn)
    assert {q.qid for q in qpairs} == {0, 1} and {q.hostnqn for q in qpairs} == {HOST}

    after = (await bdev.iostat(rpc, [uuid])).bdevs[0]
    assert after.bytes_written - before.bytes_written == len(pattern)
    assert after.bytes_read - before.bytes_read == len(pattern) + 16384

    lost = asyncio.Event()
    host.on_disconnect(lambda _: lost.set())
    await nvmf.remove_host(rpc, nqn, HOST)
    async with asyncio.timeout(5):
        await lost.wait()
    await until(lambda: nvmf.get_controllers(rpc, nqn), lambda found: found == [])
    with pytest.raises(FailedPrecondition):
        await initiator.connect(ADDRESS, port, nqn, HOST)
    await host.close()


async def test_a_resize_is_seen_by_a_connected_host(rpc: Client, pool: Pool, export: Export, port: int) -> None:
    await lvol.create(rpc, pool.name, "v", 16 * MIB)
    nqn = await export(f"{pool.name}/v")
    host = await initiator.connect(ADDRESS, port, nqn, HOST)
    await host.namespaces()
    await lvol.resize(rpc, f"{pool.name}/v", 32 * MIB)

    async def size() -> int:
        return (await host.namespaces())[0].size_bytes

    await until(size, lambda got: got == 32 * MIB)
    assert await until(host.changed_namespaces, lambda changed: changed == [1])
    await host.write(1, 31 * MIB, b"\x5a" * 4096)
    assert await host.read(1, 31 * MIB, 4096) == b"\x5a" * 4096
    await host.close()


async def test_ana_inaccessible_refuses_io(rpc: Client, pool: Pool, export: Export, port: int) -> None:
    uuid = await lvol.create(rpc, pool.name, "v", 16 * MIB)
    nqn = await export(f"{pool.name}/v")
    host = await initiator.connect(ADDRESS, port, nqn, HOST)
    await host.write(1, 0, b"\x01" * 4096)
    await nvmf.set_ana_state(rpc, nqn, ADDRESS, port, nvmf.AnaState.INACCESSIBLE)
    before = (await bdev.iostat(rpc, [uuid])).bdevs[0].num_write_ops
    with pytest.raises(QuarryError):
        await host.write(1, 0, b"\x02" * 4096)
    assert (await bdev.iostat(rpc, [uuid])).bdevs[0].num_write_ops == before
    await nvmf.set_ana_state(rpc, nqn, ADDRESS, port, nvmf.AnaState.OPTIMIZED)
    assert await host.read(1, 0, 4096) == b"\x01" * 4096
    await host.close()


async def test_a_snapshot_keeps_what_was_and_clones_part_ways(
    rpc: Client, pool: Pool, export: Export, port: int
) -> None:
    await lvol.create(rpc, pool.name, "v", 16 * MIB)
    volume = await initiator.connect(ADDRESS, port, await export(f"{pool.name}/v"), HOST)
    await volume.write(1, 0, b"\x01" * MIB)
    await volume.write(1, 2 * MIB, b"\x02" * MIB)
    await lvol.snapshot(rpc, f"{pool.name}/v", "s")
    await volume.write(1, 0, b"\x03" * 4096)
    await lvol.clone(rpc, f"{pool.name}/s", "c")
    clone = await initiator.connect(ADDRESS, port, await export(f"{pool.name}/c"), HOST)
    assert await clone.read(1, 0, MIB) == b"\x01" * MIB
    await clone.write(1, 2 * MIB, b"\x04" * 4096)
    assert await volume.read(1, 0, 8192) == b"\x03" * 4096 + b"\x01" * 4096
    assert await volume.read(1, 2 * MIB, 4096) == b"\x02" * 4096
    assert await clone.read(1, 2 * MIB, 8192) == b"\x04" * 4096 + b"\x02" * 4096
    assert await clone.read(1, 8 * MIB, 4096) == bytes(4096)

    await lvol.decouple_parent(rpc, f"{pool.name}/c")
    assert await clone.read(1, 0, 4096) == b"\x01" * 4096
    await lvol.delete(rpc, f"{pool.name}/s")
    assert await volume.read(1, 0, 8192) == b"\x03" * 4096 + b"\x01" * 4096
    assert await volume.read(1, 2 * MIB, MIB) == b"\x02" * MIB
    await volume.close()
    await clone.close()


async def test_a_snapshot_cannot_be_written(rpc: Client, pool: Pool, export: Export, port: int) -> None:
    await lvol.create(rpc, pool.name, "v", 16 * MIB)
    await lvol.snapshot(rpc, f"{pool.name}/v", "s")
    host = await initiator.connect(ADDRESS, port, await export(f"{pool.name}/s"), HOST)
    with pytest.raises(QuarryError):
        await host.write(1, 0, b"\x01" * 4096)
    assert await host.read(1, 0, 4096) == bytes(4096)
    await host.close()
