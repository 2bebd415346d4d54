"""Two targets: one exports, the other attaches it and builds a raid1 over it and an lvol of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from agent.nvmf import initiator
from agent.spdk import bdev, lvol, nvme_controller, nvmf, raid
from agent.spdk.client import Client

from .conftest import HOST, MIB, NQN_PREFIX, OTHER_HOST, Pool, ensure_transport
from .targets import ADDRESS, free_port
from .waiting import refused, until

Name = Callable[[str], str]
Export = Callable[..., Awaitable[str]]
SIZE = 16 * MIB


@dataclass(frozen=True)
class Remote:
    """An lvol of the target, exported to the peer."""

    nqn: str
    uuid: str
    alias: str


@pytest.fixture
async def remote(rpc: Client, pool: Pool, export: Export) -> Remote:
    uuid = await lvol.create(rpc, pool.name, "v", SIZE)
    return Remote(await export(f"{pool.name}/v"), uuid, f"{pool.name}/v")


@pytest.fixture
async def attached(peer_rpc: Client, remote: Remote, port: int, name: Name) -> AsyncIterator[str]:
    """Name of the controller on the peer; its bdev is `<name>n1`."""
    controller = name("remote")
    assert await attach(peer_rpc, controller, port, remote) == [f"{controller}n1"]
    yield controller
    if await nvme_controller.get(peer_rpc, controller):
        await nvme_controller.detach(peer_rpc, controller)


async def attach(peer_rpc: Client, controller: str, port: int, remote: Remote, host: str = HOST) -> list[str]:
    return await nvme_controller.attach(peer_rpc, controller, ADDRESS, port, remote.nqn, hostnqn=host)


async def test_attach(peer_rpc: Client, rpc: Client, remote: Remote, attached: str, port: int) -> None:
    assert await refused(attach(peer_rpc, attached, port, remote)) == -114
    controller = await nvme_controller.get(peer_rpc, attached)
    assert controller is not None
    assert [path.state for path in controller.ctrlrs] == ["enabled"]
    assert (controller.ctrlrs[0].trid.traddr, controller.ctrlrs[0].trid.trsvcid) == (ADDRESS, str(port))
    assert controller in await nvme_controller.list_all(peer_rpc)
    found = await bdev.get(peer_rpc, f"{attached}n1")
    assert found is not None
    assert (found.product_name, found.size_bytes, found.uuid) == ("NVMe disk", SIZE, remote.uuid)
    (connected,) = await nvmf.get_controllers(rpc, remote.nqn)
    assert connected.hostnqn == HOST
    await nvme_controller.detach(peer_rpc, attached)
    assert await bdev.get(peer_rpc, f"{attached}n1") is None
    assert await refused(nvme_controller.detach(peer_rpc, attached)) == -19
    await until(lambda: nvmf.get_controllers(rpc, remote.nqn), lambda found: found == [])


async def test_attach_refusals(peer_rpc: Client, remote: Remote, port: int, name: Name) -> None:
    controller = name("remote")
    assert await refused(attach(peer_rpc, controller, port, remote, OTHER_HOST)) == -5
    assert await refused(attach(peer_rpc, controller, free_port(), remote)) == -5
    assert await nvme_controller.get(peer_rpc, controller) is None


async def test_a_resize_reaches_the_peer(peer_rpc: Client, rpc: Client, remote: Remote, attached: str) -> None:
    await lvol.resize(rpc, remote.alias, 2 * SIZE)
    await until(lambda: bdev.get(peer_rpc, f"{attached}n1"), lambda b: b is not None and b.size_bytes == 2 * SIZE)


async def test_removing_the_host_cuts_the_peer_off(
    peer_rpc: Client, rpc: Client, remote: Remote, attached: str
) -> None:
    await nvmf.remove_host(rpc, remote.nqn, HOST)
    await until(lambda: nvmf.get_controllers(rpc, remote.nqn), lambda found: found == [])
    await until(lambda: nvme_controller.get(peer_rpc, attached), lambda c: c is None)  # after ctrlr_loss_timeout_sec
    assert await bdev.get(peer_rpc, f"{attached}n1") is None


# --- raid1 ---


@pytest.fixture
async def mirror(peer_rpc: Client, peer_pool: Pool, attached: str, name: Name) -> AsyncIterator[str]:
    """Name of a raid1 on the peer over an lvol of its own and the attached one."""
    await lvol.create(peer_rpc, peer_pool.name, "v", SIZE)
    mirror = name("raid")
    await raid.create(peer_rpc, mirror, [f"{peer_pool.name}/v", f"{attached}n1"])
    yield mirror
    if await raid.get(peer_rpc, mirror):
        await raid.delete(peer_rpc, mirror)


async def rebuilt(peer_rpc: Client, mirror: str) -> raid.RaidPart:
    found = await until(lambda: raid.get(peer_rpc, mirror), lambda r: r is not None and r.process is None)
    assert found is not None
    return found


async def test_raid_members(peer_rpc: Client, peer_pool: Pool, attached: str, mirror: str) -> None:
    local, other = f"{peer_pool.name}/v", f"{attached}n1"
    info = await raid.get(peer_rpc, mirror)
    assert info is not None
    assert (info.state, info.raid_level, info.superblock) == ("online", "raid1", False)
    assert [m.name for m in info.base_bdevs_list] == [local, other]
    found = await bdev.get(peer_rpc, mirror)
    assert found is not None and (found.product_name, found.size_bytes) == ("Raid Volume", SIZE)
    for category in ("all", "online"):
        assert mirror in [r.name for r in await raid.list_all(peer_rpc, category)]
    assert mirror not in [r.name for r in await raid.list_all(peer_rpc, "offline")]

    await raid.remove_base(peer_rpc, other)
    info = await raid.get(peer_rpc, mirror)
    assert info is not None and (info.state, info.num_base_bdevs_operational) == ("online", 1)
    assert [(m.name, m.is_configured) for m in info.base_bdevs_list] == [(local, True), (None, False)]
    await raid.add_base(peer_rpc, mirror, other)
    info = await rebuilt(peer_rpc, mirror)
    assert [(m.name, m.is_configured) for m in info.base_bdevs_list] == [(local, True), (other, True)]

    await raid.delete(peer_rpc, mirror)
    assert await bdev.get(peer_rpc, mirror) is None
    assert await refused(raid.delete(peer_rpc, mirror)) == -19
    assert await bdev.get(peer_rpc, local) is not None


async def test_raid_refusals(peer_rpc: Client, peer_pool: Pool, attached: str, mirror: str, name: Name) -> None:
    members = [f"{peer_pool.name}/v", f"{attached}n1"]
    assert await refused(raid.create(peer_rpc, mirror, members)) == -17
    assert await refused(raid.create(peer_rpc, name("raid"), [members[0], "none"])) == -1
    assert await refused(raid.add_base(peer_rpc, mirror, "none")) == -22
    assert await refused(raid.delete(peer_rpc, "none")) == -19


async def test_raid_writes_both_and_rebuilds_what_was_missed(
    peer_rpc: Client, peer_pool: Pool, attached: str, mirror: str, name: Name
) -> None:
    """A member that was away gets what was written meanwhile; then each member alone has all data."""
    local, other = f"{peer_pool.name}/v", f"{attached}n1"
    nqn, port = NQN_PREFIX + name("raid"), free_port()
    await ensure_transport(peer_rpc)
    await nvmf.create_subsystem(peer_rpc, nqn, "S", "M")
    await nvmf.add_namespace(peer_rpc, nqn, mirror)
    await nvmf.add_host(peer_rpc, nqn, HOST)
    await nvmf.add_listener(peer_rpc, nqn, ADDRESS, port)
    host = await initiator.connect(ADDRESS, port, nqn, HOST)
    try:
        await host.write(1, 0, b"\x11" * MIB)
        await raid.remove_base(peer_rpc, other)
        await host.write(1, 5 * MIB, b"\x22" * MIB)
        await raid.add_base(peer_rpc, mirror, other)
        await host.write(1, 9 * MIB, b"\x33" * MIB)
        await rebuilt(peer_rpc, mirror)
        await raid.remove_base(peer_rpc, local)  # only the rebuilt member is left
        for offset, byte in ((0, 0x11), (5 * MIB, 0x22), (9 * MIB, 0x33), (12 * MIB, 0)):
            assert await host.read(1, offset, MIB) == bytes([byte]) * MIB
    finally:
        await host.close()
        await nvmf.delete_subsystem(peer_rpc, nqn)


async def test_raid_goes_on_when_the_remote_member_dies(
    peer_rpc: Client, rpc: Client, remote: Remote, attached: str, mirror: str
) -> None:
    await nvmf.delete_subsystem(rpc, remote.nqn)
    info = await until(
        lambda: raid.get(peer_rpc, mirror), lambda r: r is not None and r.num_base_bdevs_operational == 1
    )
    assert info is not None and info.state == "online"
