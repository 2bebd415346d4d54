"""A user-space NVMe/TCP host: connect to a subsystem, identify it, read and write its namespaces.

`connect` returns a Controller with an admin queue and I/O queues, enabled and kept alive until `close` or the loss of
the connection. It does not reconnect: whoever owns it decides that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from agent.errors import DeadlineExceeded, OutOfRange, QuarryError, Unavailable
from agent.nvmf import identify as ids
from agent.nvmf import logs
from agent.nvmf.admin import AdminQueue, ConnectData
from agent.nvmf.command import SGL_IN_CAPSULE, Cns, Command, EventInfo, Feature, IoOpcode, LogPage
from agent.nvmf.failure import CommandError
from agent.nvmf.identify import AnaState, IdentifyController, IdentifyNamespace, OptionalEvents
from agent.nvmf.pdu import NO_DIGESTS, Digests
from agent.nvmf.queue import Buffer, Queue, open_queue
from agent.tasks.background import noticed

log = logging.getLogger(__name__)

DISCOVERY_NQN = "nqn.2014-08.org.nvmexpress.discovery"
_CHUNK_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class NamespaceInfo:
    """One active namespace. Sizes in bytes; `uuid` is empty when the controller gives none."""

    nsid: int
    uuid: str
    nguid: str
    block_bytes: int
    size_bytes: int
    ana_group: int
    shared: bool


@dataclass(frozen=True, slots=True)
class Options:
    """How to connect. Times in seconds; `keep_alive_s` 0 asks for no keep alive timer.

    `timeout_s` is for connecting and every admin command, `io_timeout_s` for an I/O (None: the same).
    """

    hostid: uuid.UUID | None = None
    digests: Digests = NO_DIGESTS
    queue_depth: int = 32
    io_queues: int = 1
    keep_alive_s: float = 10.0
    timeout_s: float = 10.0
    io_timeout_s: float | None = None


DEFAULTS = Options()


def host_identifier(hostnqn: str) -> uuid.UUID:
    """The host identifier that belongs to `hostnqn`: the UUID in it, else one derived from it."""
    with contextlib.suppress(ValueError):
        return uuid.UUID(hostnqn.rpartition("uuid:")[2])
    return uuid.uuid5(uuid.NAMESPACE_URL, hostnqn)


class Controller:
    """A live association with a controller. Offsets and lengths are bytes and multiples of the block size."""

    def __init__(self, admin: AdminQueue, info: IdentifyController, options: Options) -> None:
        self.admin = admin
        self.info = info
        self._options = options
        self._io: list[Queue] = []
        self._turn = 0
        self._blocks: dict[int, int] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._lost: list[Callable[[Exception], None]] = []
        self._events: list[Callable[[EventInfo | int], None]] = []

    @property
    def cntlid(self) -> int:
        return self.admin.cntlid

    @property
    def connected(self) -> bool:
        return self.admin.queue.failure is None

    def on_disconnect(self, listener: Callable[[Exception], None]) -> None:
        """Call `listener` once when a connection is lost or closed. Must not block."""
        self._lost.append(listener)

    def on_event(self, listener: Callable[[EventInfo | int], None]) -> None:
        """Call `listener` with the information of every notice (asynchronous event). Must not block."""
        self._events.append(listener)

    # --- what the controller has ----------------------------------------------------------------------------------

    async def identify(self) -> IdentifyController:
        """The Identify Controller data, asked anew."""
        self.info = IdentifyController.unpack(await self.admin.identify(Cns.CONTROLLER))
        return self.info

    async def namespaces(self) -> list[NamespaceInfo]:
        """All active namespaces, by identifier."""
        found: list[NamespaceInfo] = []
        nsids = ids.unpack_nsid_list(await self.admin.identify(Cns.ACTIVE_NAMESPACES))
        while nsids:
            for nsid in nsids:
                info = await self.namespace(nsid)
                if info is not None:
                    found.append(info)
            full = len(nsids) == ids.NSID_LIST_ENTRIES
            nsids = ids.unpack_nsid_list(await self.admin.identify(Cns.ACTIVE_NAMESPACES, nsids[-1])) if full else []
        return found

    async def namespace(self, nsid: int) -> NamespaceInfo | None:
        """One namespace, or None when it is not active."""
        try:
            data = IdentifyNamespace.unpack(await self.admin.identify(Cns.NAMESPACE, nsid))
            if data.size == 0:
                self._blocks.pop(nsid, None)
                return None
            descriptors = await self.admin.identify(Cns.NAMESPACE_DESCRIPTORS, nsid)
        except CommandError as error:
            if error.path_related:
                raise
            return None
        self._blocks[nsid] = data.block_bytes
        return NamespaceInfo(
            nsid=nsid,
            uuid=ids.namespace_uuid(descriptors, data.nguid),
            nguid=data.nguid.hex(),
            block_bytes=data.block_bytes,
            size_bytes=data.size * data.block_bytes,
            ana_group=data.ana_group,
            shared=bool(data.shared & ids.NMIC_SHARED),
        )

    async def ana_states(self) -> dict[int, AnaState]:
        """ANA group -> state; empty when the controller does not report ANA."""
        if not self.info.cmic & ids.CMIC_ANA:
            return {}
        length = logs.ana_bytes(self.info.ana_groups, self.info.max_namespaces or self.info.namespaces)
        page = await self.admin.log_page(LogPage.ANA, length)
        return {group.group: group.state for group in logs.unpack_ana(page)}

    async def health(self) -> logs.Health:
        return logs.Health.unpack(await self.admin.log_page(LogPage.HEALTH, logs.HEALTH_BYTES))

    async def changed_namespaces(self) -> list[int]:
        """Namespaces changed since this was last read; [0xFFFFFFFF] when there were too many."""
        return ids.unpack_nsid_list(await self.admin.log_page(LogPage.CHANGED_NAMESPACES, ids.IDENTIFY_BYTES))

    async def discover(self) -> list[logs.DiscoveryEntry]:
        """The discovery log page of a discovery controller."""
        header = await self.admin.log_page(LogPage.DISCOVERY, logs.DISCOVERY_HEADER_BYTES)
        while True:
            generation, count = logs.unpack_discovery_header(header)
            body = b""
            if count:
                length = count * logs.DiscoveryEntry.SIZE
                body = await self.admin.log_page(LogPage.DISCOVERY, length, offset=logs.DISCOVERY_HEADER_BYTES)
            header = await self.admin.log_page(LogPage.DISCOVERY, logs.DISCOVERY_HEADER_BYTES)
            if logs.unpack_discovery_header(header)[0] == generation:
                size = logs.DiscoveryEntry.SIZE
                return [logs.DiscoveryEntry.unpack(body[at : at + size]) for at in range(0, len(body), size)]

    # --- I/O ------------------------------------------------------------------------------------------------------

    async def read(self, nsid: int, offset: int, length: int) -> bytes:
        chunks = [self._read_chunk(nsid, at, size) for at, size in await self._split(nsid, offset, length)]
        parts = await _together(chunks)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def write(self, nsid: int, offset: int, data: Buffer) -> None:
        view = memoryview(data)
        pieces = await self._split(nsid, offset, len(view))
        await _together([self._write_chunk(nsid, at, view[at - offset : at - offset + size]) for at, size in pieces])

    async def write_zeroes(self, nsid: int, offset: int, length: int) -> None:
        """Zero a range, without data on the wire when the controller can, else with."""
        block = await self._block_bytes(nsid, offset, length)
        if not self.info.optional_commands & ids.OptionalCommands.WRITE_ZEROES:
            for at in range(offset, offset + length, _CHUNK_MAX):
                await self.write(nsid, at, bytes(min(_CHUNK_MAX, offset + length - at)))
            return
        for at, size in _pieces(offset, length, block << 16):
            await self._io_command(IoOpcode.WRITE_ZEROES, nsid, at // block, size // block - 1)

    async def unmap(self, nsid: int, offset: int, length: int) -> None:
        """Deallocate a range (Dataset Management). Only advice when the controller does not offer the command."""
        block = await self._block_bytes(nsid, offset, length)
        if not self.info.optional_commands & ids.OptionalCommands.DATASET_MANAGEMENT:
            return
        for at, size in _pieces(offset, length, block << 20):
            data = bytes(4) + (size // block).to_bytes(4, "little") + (at // block).to_bytes(8, "little")
            command = Command(IoOpcode.DATASET_MANAGEMENT, nsid, cdw10=0, cdw11=4)
            await self._run(command, data, what="dataset management")

    async def flush(self, nsid: int) -> None:
        await self._run(Command(IoOpcode.FLUSH, nsid), what="flush")

    async def _read_chunk(self, nsid: int, offset: int, length: int) -> bytes:
        block = self._blocks[nsid]
        data = await self._io_command(IoOpcode.READ, nsid, offset // block, length // block - 1, incoming=length)
        if len(data) != length:
            raise Unavailable(f"read of {length} bytes returned {len(data)}")
        return data

    async def _write_chunk(self, nsid: int, offset: int, data: memoryview) -> bytes:
        block = self._blocks[nsid]
        return await self._io_command(IoOpcode.WRITE, nsid, offset // block, len(data) // block - 1, data)

    async def _io_command(
        self, opcode: IoOpcode, nsid: int, lba: int, blocks: int, data: Buffer = b"", *, incoming: int = 0
    ) -> bytes:
        command = Command(opcode, nsid, cdw10=lba & 0xFFFFFFFF, cdw11=lba >> 32, cdw12=blocks)
        return await self._run(command, data, incoming=incoming, what=opcode.name.lower().replace("_", " "))

    async def _run(self, command: Command, data: Buffer = b"", *, incoming: int = 0, what: str) -> bytes:
        queue = self._io[self._turn % len(self._io)]
        self._turn += 1
        capsule = self.info.command_capsule * 16 - 64
        if data and len(data) <= capsule:
            command.sgl_type = SGL_IN_CAPSULE
        timeout_s = self._options.io_timeout_s or self._options.timeout_s
        completion, received = await queue.submit(command, data, incoming=incoming, timeout_s=timeout_s)
        if completion.status:
            raise CommandError(what, completion.status, completion.dnr)
        return received

    async def _block_bytes(self, nsid: int, offset: int, length: int) -> int:
        if nsid not in self._blocks and await self.namespace(nsid) is None:
            raise OutOfRange(f"namespace {nsid} does not exist")
        block = self._blocks[nsid]
        if offset < 0 or length <= 0 or offset % block or length % block:
            raise OutOfRange(f"offset {offset} and length {length} are not multiples of the block size {block}")
        return block

    async def _split(self, nsid: int, offset: int, length: int) -> list[tuple[int, int]]:
        await self._block_bytes(nsid, offset, length)
        return _pieces(offset, length, min(self.info.max_transfer_bytes or _CHUNK_MAX, _CHUNK_MAX))

    # --- life -----------------------------------------------------------------------------------------------------

    async def start(self, connect_io: Callable[[int], ConnectData]) -> None:
        """Connect the I/O queues, then keep the association alive and wait for events."""
        self.admin.queue.on_end = self._ended
        if self.info.controller_type != ids.ControllerType.DISCOVERY:
            await self._open_io(connect_io)
            wanted = self.info.events & (OptionalEvents.NAMESPACE_ATTRIBUTE | OptionalEvents.ANA_CHANGE)
            await self.admin.set_feature(Feature.ASYNC_EVENT_CONFIGURATION, wanted)
        self._begin("nvme-tcp-events", self._listen())
        if self._options.keep_alive_s and self.info.keep_alive_granularity:
            self._begin("nvme-tcp-keep-alive", self._keep_alive())

    def _begin(self, what: str, work: Coroutine[Any, Any, None]) -> None:
        """Until the association is over."""
        task = asyncio.create_task(work, name=what)
        noticed(what, task)
        self._tasks.append(task)

    async def _open_io(self, connect_io: Callable[[int], ConnectData]) -> None:
        wanted = self._options.io_queues - 1
        granted = await self.admin.set_feature(Feature.NUMBER_OF_QUEUES, wanted | wanted << 16)
        count = min(self._options.io_queues, (granted & 0xFFFF) + 1, (granted >> 16 & 0xFFFF) + 1)
        for qid in range(1, count + 1):
            queue = await self.admin.connect_io(connect_io(qid))
            queue.on_end = self._ended
            self._io.append(queue)

    async def _listen(self) -> None:
        with contextlib.suppress(Unavailable, CommandError):
            while True:
                kind, info = await self.admin.next_event()
                log.debug("asynchronous event type %d information %#x", kind, info)
                for listener in list(self._events):
                    listener(EventInfo(info) if info in set(EventInfo) else info)

    async def _keep_alive(self) -> None:
        with contextlib.suppress(QuarryError):
            while True:
                await asyncio.sleep(self._options.keep_alive_s / 2)
                await self.admin.keep_alive()

    def _ended(self, failure: Exception) -> None:
        """One queue ended: the association is over, so the others end too."""
        listeners, self._lost = self._lost, []
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()
        for queue in (self.admin.queue, *self._io):
            queue.close(failure)
        for listener in listeners:
            listener(failure)

    async def close(self) -> None:
        """Shut the controller down and close; never raises because of a controller that is gone."""
        for task in self._tasks:
            task.cancel()
        if self.connected:
            with contextlib.suppress(QuarryError):
                await self.admin.shut_down()
        self.admin.queue.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for queue in (self.admin.queue, *self._io):
            queue.close()
            await queue.wait_closed()


def _pieces(offset: int, length: int, limit: int) -> list[tuple[int, int]]:
    end = offset + length
    return [(at, min(limit, end - at)) for at in range(offset, end, limit)]


async def _together(calls: list[Coroutine[Any, Any, bytes]]) -> list[bytes]:
    """Run the commands of one request side by side; all have ended when this returns or raises."""
    if len(calls) == 1:
        return [await calls[0]]
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]


async def connect(address: str, port: int, subnqn: str, hostnqn: str, options: Options = DEFAULTS) -> Controller:
    """Connect to the subsystem `subnqn` as `hostnqn`.

    Raises Unavailable when nobody speaks NVMe/TCP there or the association breaks, ConnectRefused when the controller
    does not let this host in (or has no such subsystem), DeadlineExceeded after `options.timeout_s`.
    """
    queue = await open_queue(address, port, options.queue_depth, options.digests, options.timeout_s)
    hostid = options.hostid or host_identifier(hostnqn)
    association = ConnectData(subnqn, hostnqn, hostid, 0, options.queue_depth)
    try:
        async with asyncio.timeout(options.timeout_s):
            admin = AdminQueue(queue, (address, port), options.digests, options.timeout_s)
            await admin.connect(association, round(options.keep_alive_s * 1000))
            await admin.enable()
            info = IdentifyController.unpack(await admin.identify(Cns.CONTROLLER))
            if info.cntlid != admin.cntlid:
                raise Unavailable(f"controller {admin.cntlid} identifies itself as {info.cntlid}")
            depth = min(options.queue_depth, info.max_commands or options.queue_depth, admin.max_queue_size)
            controller = Controller(admin, info, options)
            await controller.start(lambda qid: ConnectData(subnqn, hostnqn, hostid, qid, depth))
    except TimeoutError as error:
        queue.close()
        raise DeadlineExceeded(f"{subnqn} at {address}:{port} was not ready in {options.timeout_s} s") from error
    except BaseException:
        queue.close()
        raise
    return controller
