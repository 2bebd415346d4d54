"""The TCP ports the target listens on: one socket for an address and port, shared by all subsystems that use it."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
from dataclasses import dataclass, field

from agent.embedded.nvmf.connection import Connection, Executor
from agent.embedded.nvmf.settings import CONNECTIONS_UNASSOCIATED_MAX, WRITE_BUFFER_BYTES
from agent.embedded.nvmf.subsystem import Address

log = logging.getLogger(__name__)

_READ_BUFFER_BYTES = 256 << 10
_CLOSE_S = 2.0
"""How long connections may take to end when their port closes."""


@dataclass(slots=True)
class _Port:
    server: asyncio.Server
    users: int = 1
    connections: dict[Connection, asyncio.Task[None]] = field(default_factory=dict)


class Ports:
    """`bind_address`, when given, is the only address that can be listened on."""

    def __init__(self, executor: Executor, bind_address: str | None) -> None:
        self._executor = executor
        self._bind_address = bind_address
        self._ports: dict[Address, _Port] = {}
        self._waiting: set[Connection] = set()
        self._lock = asyncio.Lock()

    async def acquire(self, address: Address) -> None:
        """Listen on `address`, or share the socket that does; raises OSError or ValueError when it cannot be."""
        async with self._lock:
            port = self._ports.get(address)
            if port is not None:
                port.users += 1
                return
            self._ports[address] = await self._listen(address)

    async def release(self, address: Address) -> None:
        """Undo one `acquire`; with the last one the socket closes (connections stay until they are cut)."""
        async with self._lock:
            port = self._ports.get(address)
            if port is None:
                return
            port.users -= 1
            if port.users == 0:
                del self._ports[address]
                await self._shut(port)

    async def close(self) -> None:
        async with self._lock:
            ports, self._ports = list(self._ports.values()), {}
            for port in ports:
                await self._shut(port)

    @property
    def unassociated(self) -> int:
        """Connections without an accepted Connect."""
        self._waiting = {connection for connection in self._waiting if connection.controller is None}
        return len(self._waiting)

    async def _listen(self, address: Address) -> _Port:
        ip = ipaddress.ip_address(address.host)
        if (address.family == "IPv6") != (ip.version == 6):
            raise ValueError(f"{address.host} is not an {address.family} address")
        if self._bind_address not in (None, address.host):
            raise OSError(errno.EADDRNOTAVAIL, f"listening is limited to {self._bind_address}")
        service = int(address.service)
        if not 0 < service < 65536:
            raise ValueError(f"port {service} is out of range")
        connections: dict[Connection, asyncio.Task[None]] = {}

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if self._crowded():
                log.warning("too many connections without Connect at %s; closing one", address)
                writer.transport.abort()
                return
            writer.transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)
            connection = Connection(self._executor, reader, writer, _reached(address, writer))
            task = asyncio.current_task()
            if task is not None:
                connections[connection] = task
            self._waiting.add(connection)
            try:
                await connection.serve()
            except asyncio.CancelledError:
                log.debug("a connection of %s was cut with I/O in a bdev", connection.peer)
            finally:
                connections.pop(connection, None)
                self._waiting.discard(connection)

        server = await asyncio.start_server(
            accept, address.host, service, limit=_READ_BUFFER_BYTES, backlog=512, reuse_address=True
        )
        log.info("listening for NVMe/TCP at %s port %s", address.host, service)
        return _Port(server, connections=connections)

    def _crowded(self) -> bool:
        """True when too many connections wait for their Connect."""
        return len(self._waiting) >= CONNECTIONS_UNASSOCIATED_MAX <= self.unassociated

    @staticmethod
    async def _shut(port: _Port) -> None:
        port.server.close()
        for connection in list(port.connections):
            connection.close("port closed")
        tasks = list(port.connections.values())
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=_CLOSE_S)
            for task in stuck:
                task.cancel()


def _reached(listener: Address, writer: asyncio.StreamWriter) -> Address:
    """The address that a host has come to: behind a listener for any address it is one that no subsystem has.

    The real target compares so too, and lets nobody in (`nvmf_ctrlr_connect`, "does not allow host to connect at").
    """
    host = ipaddress.ip_address(writer.get_extra_info("sockname")[0])
    return listener if host == ipaddress.ip_address(listener.host) else listener._replace(host=str(host))
