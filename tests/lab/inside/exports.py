"""Disks that a target exports to this machine's kernel, without the agent between."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from agent.host.nvme_host import NvmeHost
from agent.spdk import app, bdev, nvmf
from agent.spdk.client import Client
from tests.contract.targets import ADDRESS, Target, free_port

MIB = 1 << 20
BLOCK = 4096
HOST = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555"
_numbers = itertools.count(1)


class Export:
    """One file as a namespace of a subsystem of its own, open to HOST."""

    def __init__(self, exports: Exports, size_bytes: int) -> None:
        number = next(_numbers)
        self.name = f"disk{number}"
        self.nqn = f"nqn.2026-11.storage.quarry:lab:{number}"
        self.uuid = str(uuid.uuid4())
        self.port = free_port()
        self.file = exports.target.disk(self.name, size_bytes)
        self._exports = exports

    async def expose(self) -> None:
        """Make it all; again after the target restarted. The host comes last: what it finds must be complete."""
        rpc = self._exports.rpc
        # The same UUID each time: the kernel drops a namespace that comes back with other identifiers.
        await bdev.aio_create(rpc, self.name, str(self.file), block_bytes=BLOCK, uuid=self.uuid)
        await nvmf.create_subsystem(rpc, self.nqn, f"LAB{self.port}", "Lab disk")
        await self.add_namespace()
        await nvmf.add_listener(rpc, self.nqn, ADDRESS, self.port)
        await nvmf.add_host(rpc, self.nqn, HOST)

    async def add_namespace(self) -> None:
        await nvmf.add_namespace(self._exports.rpc, self.nqn, self.name)

    async def connect(self) -> Path:
        """Connect this machine's kernel as the product does; returns the block device."""
        host = self._exports.host
        await host.connect(self.nqn, ADDRESS, self.port, HOST)
        return await host.wait_for_device(self.nqn, self.uuid)

    async def set_ana_state(self, state: nvmf.AnaState) -> None:
        await nvmf.set_ana_state(self._exports.rpc, self.nqn, ADDRESS, self.port, state)

    async def resize(self, size_bytes: int) -> None:
        with self.file.open("r+b") as file:
            file.truncate(size_bytes)
        await bdev.aio_rescan(self._exports.rpc, self.name)

    def states(self) -> list[str]:
        """The kernel's word for each connection."""
        return [found.state for found in self._exports.host.controllers(self.nqn)]

    def kernel_size(self) -> int:
        return self._exports.host.size_bytes(self.nqn, self.uuid)


class Exports:
    """The exported disks of one test."""

    rpc: Client

    def __init__(self, target: Target) -> None:
        self.target = target
        self.host = NvmeHost()
        self._made: list[Export] = []

    async def __aenter__(self) -> Self:
        await self.attach()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for export in self._made:
            await self.host.disconnect(export.nqn)
            await nvmf.delete_subsystem(self.rpc, export.nqn)
            await bdev.aio_delete(self.rpc, export.name)
        await self.rpc.close()

    async def attach(self) -> None:
        """Connect to the target and make its transport when it is new."""
        self.rpc = Client(self.target.socket_path, call_timeout_s=60.0)
        await self.rpc.start()
        await self.rpc.wait_connected(60)
        await app.wait_init(self.rpc)
        if await nvmf.get_transport(self.rpc) is None:
            await nvmf.create_transport(self.rpc)

    async def make(self, size_mib: int = 64) -> Export:
        export = Export(self, size_mib * MIB)
        await export.expose()
        self._made.append(export)
        return export

    async def crash_and_restart(self) -> None:
        """SIGKILL the target, start it again and give it back what it had exported."""
        await self.rpc.close()
        await asyncio.to_thread(self.target.kill)
        self.target.start()
        await self.attach()
        for export in self._made:
            await export.expose()
