"""The contract suite: the same tests against the embedded target and, where there is one, a real spdk_tgt.

`target` and `peer` are two running targets of one kind; `rpc` and `peer_rpc` are clients of them. Tests name what they
make with `name`, so that they do not meet; `pool` is an lvstore of the test's own.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest

from agent.errors import QuarryError
from agent.spdk import app, bdev, lvol, nvmf
from agent.spdk.client import Client

from .targets import ADDRESS, Target, find_spdk_tgt, free_port

MIB = 1024 * 1024
BLOCK = 4096
NQN_PREFIX = "nqn.2026-11.storage.quarry:vol:"
HOST = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555"
OTHER_HOST = "nqn.2014-08.org.nvmexpress:uuid:99999999-2222-3333-4444-555555555555"

_numbers = itertools.count(1)


@pytest.fixture(scope="package", params=["embedded", "real"])
def kind(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    if chosen == "real" and find_spdk_tgt() is None:
        pytest.skip("spdk_tgt not found (SPDK_TGT or PATH)")
    return chosen


def _running(kind: str, core: int) -> Iterator[Target]:
    target = Target(kind, core)
    try:
        target.start()
        yield target
    finally:
        target.close()


@pytest.fixture(scope="package")
def target(kind: str) -> Iterator[Target]:
    yield from _running(kind, 0)


@pytest.fixture(scope="package")
def second(kind: str) -> Iterator[Target]:
    yield from _running(kind, 1)


@pytest.fixture
def peer(second: Target) -> Iterator[Target]:
    """A second target, to attach to the first."""
    second.resume()
    yield second
    second.pause()


async def _client(target: Target) -> AsyncIterator[Client]:
    async with Client(target.socket_path, call_timeout_s=30.0, reconnect_min_s=0.01, reconnect_max_s=0.1) as client:
        await client.wait_connected(30)
        await app.wait_init(client)
        yield client


@pytest.fixture
async def rpc(target: Target) -> AsyncIterator[Client]:
    async for client in _client(target):
        yield client


@pytest.fixture
async def peer_rpc(peer: Target) -> AsyncIterator[Client]:
    async for client in _client(peer):
        yield client


@pytest.fixture
def name() -> Callable[[str], str]:
    """A name nobody has used yet."""
    return lambda stem: f"{stem}-{next(_numbers)}"


@pytest.fixture(scope="package")
def port() -> int:
    return free_port()


@dataclass(frozen=True)
class Pool:
    """An lvstore over a base bdev over a file."""

    name: str
    uuid: str
    bdev: str
    file: str


async def make_pool(rpc: Client, target: Target, stem: str, size_bytes: int = 256 * MIB) -> Pool:
    """A pool of 1 MiB clusters. `remove_pool` takes it away."""
    base = f"disk-{stem}"
    file = str(target.disk(f"{stem}.img", size_bytes))
    await bdev.aio_create(rpc, base, file, BLOCK)
    uuid = await lvol.create_lvstore(rpc, base, f"pool-{stem}", cluster_bytes=MIB, md_ratio=300)
    return Pool(f"pool-{stem}", uuid, base, file)


async def remove_pool(rpc: Client, pool: Pool) -> None:
    with suppress(QuarryError):
        await bdev.aio_delete(rpc, pool.bdev)


@pytest.fixture
async def pool(rpc: Client, target: Target, name: Callable[[str], str]) -> AsyncIterator[Pool]:
    made = await make_pool(rpc, target, name("t"))
    yield made
    await remove_pool(rpc, made)


@pytest.fixture
async def peer_pool(peer_rpc: Client, peer: Target, name: Callable[[str], str]) -> AsyncIterator[Pool]:
    made = await make_pool(peer_rpc, peer, name("p"))
    yield made
    await remove_pool(peer_rpc, made)


async def ensure_transport(rpc: Client) -> None:
    if await nvmf.get_transport(rpc) is None:
        await nvmf.create_transport(rpc)


@pytest.fixture
async def export(rpc: Client, port: int, name: Callable[[str], str]) -> AsyncIterator[Callable[..., object]]:
    """Exports a bdev to HOST at ADDRESS:port, returns the subsystem's NQN."""
    made: list[str] = []

    async def export_bdev(bdev_name: str, *hosts: str) -> str:
        nqn = NQN_PREFIX + name("v")
        await ensure_transport(rpc)
        await nvmf.create_subsystem(rpc, nqn, "SERIAL", "Quarry volume")
        made.append(nqn)
        await nvmf.add_namespace(rpc, nqn, bdev_name)
        for host in hosts or (HOST,):
            await nvmf.add_host(rpc, nqn, host)
        await nvmf.add_listener(rpc, nqn, ADDRESS, port)
        return nqn

    yield export_bdev
    for nqn in made:
        with suppress(QuarryError):
            await nvmf.delete_subsystem(rpc, nqn)
