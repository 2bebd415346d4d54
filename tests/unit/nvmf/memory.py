"""A bdev in memory and a target with one subsystem over it, for the tests of the NVMe/TCP code."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from agent.embedded.bdev import Bdev
from agent.embedded.nvmf.settings import TransportSettings
from agent.embedded.nvmf.subsystem import Address, Namespace, Subsystem, SubsystemOptions
from agent.embedded.nvmf.target import Target
from agent.nvmf import initiator
from agent.nvmf.identify import AnaState
from agent.nvmf.initiator import Controller, Options
from tests.contract.targets import free_port

NQN = "nqn.2026-11.storage.quarry:vol:test"
HOST = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555"
OTHER = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-666666666666"
MIB = 1 << 20


class MemoryBdev(Bdev):
    product_name = "Memory disk"

    def __init__(self, name: str = "mem0", size: int = 4 * MIB, block_size: int = 4096) -> None:
        super().__init__(name, str(uuid.uuid4()), block_size, size // block_size)
        self.content = bytearray(size)
        self.flushes = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def do_read(self, offset: int, length: int) -> bytes:
        await self.gate.wait()
        return bytes(self.content[offset : offset + length])

    async def do_write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        await self.gate.wait()
        self.content[offset : offset + len(data)] = data

    async def do_write_zeroes(self, offset: int, length: int) -> None:
        self.content[offset : offset + length] = bytes(length)

    async def do_unmap(self, offset: int, length: int) -> None:
        self.content[offset : offset + length] = bytes(length)

    async def do_flush(self) -> None:
        self.flushes += 1

    def resize(self, num_blocks: int) -> None:
        self.content.extend(bytes((num_blocks - self.num_blocks) * self.block_size))


class Exported:
    """A running target with the subsystem NQN over one memory bdev, at `address`."""

    def __init__(self, target: Target, subsystem: Subsystem, bdev: MemoryBdev, address: Address) -> None:
        self.target = target
        self.subsystem = subsystem
        self.bdev = bdev
        self.address = address
        self.port = int(address.service)

    async def connect(self, options: Options = initiator.DEFAULTS, *, host: str = HOST, nqn: str = NQN) -> Controller:
        return await initiator.connect("127.0.0.1", self.port, nqn, host, options)

    @property
    def listener_state(self) -> Callable[[AnaState], None]:
        listener = self.subsystem.listeners[self.address]
        return lambda state: self.subsystem.set_ana_state(listener, state, None)


def expose(subsystem: Subsystem, bdev: Bdev, nsid: int = 1) -> Namespace:
    identity = uuid.UUID(bdev.uuid)
    namespace = Namespace(nsid, bdev, identity, identity.bytes, bytes(8), nsid)
    subsystem.add_namespace(namespace)
    return namespace


@asynccontextmanager
async def exported(
    settings: TransportSettings = TransportSettings(),  # noqa: B008
    bdev: MemoryBdev | None = None,
    options: SubsystemOptions = SubsystemOptions(ana_reporting=True, serial="QV1", model="Quarry volume"),  # noqa: B008
) -> AsyncIterator[Exported]:
    target = Target()
    target.transport = settings
    subsystem = target.create(NQN, options)
    subsystem.add_host(HOST)
    address = Address("IPv4", "127.0.0.1", str(free_port()))
    await target.ports.acquire(address)
    subsystem.add_listener(address, AnaState.OPTIMIZED)
    disk = bdev or MemoryBdev()
    expose(subsystem, disk)
    try:
        yield Exported(target, subsystem, disk, address)
    finally:
        await target.close()
