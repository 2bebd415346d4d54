"""The admin queue of a host: Connect, properties, Identify, features, log pages (NVMe over Fabrics in Base 2.0)."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import uuid
from dataclasses import dataclass

from agent.errors import DeadlineExceeded, Unavailable
from agent.nvmf.command import (
    DYNAMIC_CNTLID,
    GLOBAL_NSID,
    SGL_IN_CAPSULE,
    AdminOpcode,
    Cns,
    Command,
    FabricsType,
    Feature,
    LogPage,
    Property,
)
from agent.nvmf.failure import CommandError, ConnectRefused
from agent.nvmf.identify import IDENTIFY_BYTES
from agent.nvmf.pdu import Digests
from agent.nvmf.queue import Buffer, Queue, open_queue

_CONNECT = struct.Struct("<16sH238x256s256s256x")
CONNECT_BYTES = _CONNECT.size
_CC_ENABLE = 1 | 6 << 16 | 4 << 20
"""CC: enabled, 64-byte submission and 16-byte completion queue entries."""
_CC_SHUTDOWN = 1 << 14
_CSTS_READY, _CSTS_FATAL, _CSTS_SHUTDOWN_DONE = 1, 2, 2 << 2
_POLL_S = 0.02
_SHUTDOWN_S = 2.0
_LOG_CHUNK = 64 << 10


@dataclass(frozen=True, slots=True)
class ConnectData:
    """Who connects which queue to what. `depth` is the number of entries of the queue."""

    subnqn: str
    hostnqn: str
    hostid: uuid.UUID
    qid: int
    depth: int

    def pack(self, cntlid: int) -> bytes:
        return _CONNECT.pack(self.hostid.bytes, cntlid, self.subnqn.encode(), self.hostnqn.encode())


def unpack_connect(data: bytes) -> tuple[uuid.UUID, int, bytes, bytes]:
    """(host identifier, controller id, subsystem NQN field, host NQN field) of the data of a Connect."""
    hostid, cntlid, subnqn, hostnqn = _CONNECT.unpack_from(data)
    return uuid.UUID(bytes=hostid), cntlid, subnqn, hostnqn


async def _connect_queue(queue: Queue, data: ConnectData, cntlid: int, kato_ms: int, timeout_s: float) -> int:
    """Fabrics Connect; returns the controller id. Raises ConnectRefused."""
    command = Command(
        AdminOpcode.FABRICS, FabricsType.CONNECT, sgl_type=SGL_IN_CAPSULE,
        cdw10=data.qid << 16, cdw11=data.depth - 1, cdw12=kato_ms,
    )  # fmt: skip
    completion, _ = await queue.submit(command, data.pack(cntlid), timeout_s=timeout_s)
    if completion.status:
        raise ConnectRefused(data.subnqn, completion.status)
    return completion.result & 0xFFFF


class AdminQueue:
    """The admin queue of one association. All calls raise CommandError, ConnectionLost or DeadlineExceeded."""

    def __init__(self, queue: Queue, where: tuple[str, int], digests: Digests, timeout_s: float) -> None:
        self.queue = queue
        self.cntlid = DYNAMIC_CNTLID
        self.max_queue_size = 0
        self._where = where
        self._digests = digests
        self._timeout_s = timeout_s

    async def connect(self, data: ConnectData, kato_ms: int) -> None:
        self.cntlid = await _connect_queue(self.queue, data, DYNAMIC_CNTLID, kato_ms, self._timeout_s)

    async def connect_io(self, data: ConnectData) -> Queue:
        """Open and connect an I/O queue of this association."""
        queue = await open_queue(*self._where, data.depth, self._digests, self._timeout_s)
        try:
            await _connect_queue(queue, data, self.cntlid, 0, self._timeout_s)
        except BaseException:
            queue.close()
            raise
        return queue

    async def enable(self) -> None:
        """Set CC.EN and wait until the controller is ready (the caller sets the deadline)."""
        self.max_queue_size = (await self.get_property(Property.CAP, wide=True) & 0xFFFF) + 1
        await self.set_property(Property.CC, _CC_ENABLE)
        await self._wait_status(_CSTS_READY)

    async def shut_down(self) -> None:
        """Normal shutdown; waits up to 2 s for the controller to finish it."""
        await self.set_property(Property.CC, _CC_ENABLE | _CC_SHUTDOWN)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SHUTDOWN_S):
                await self._wait_status(_CSTS_SHUTDOWN_DONE)

    async def _wait_status(self, wanted: int) -> None:
        while not (status := await self.get_property(Property.CSTS)) & wanted:
            if status & _CSTS_FATAL:
                raise Unavailable("the controller reports a fatal status")
            await asyncio.sleep(_POLL_S)

    async def get_property(self, offset: Property, *, wide: bool = False) -> int:
        command = Command(AdminOpcode.FABRICS, FabricsType.PROPERTY_GET, cdw10=int(wide), cdw11=offset)
        return (await self._run(command, what=f"get property {offset.name}"))[0]

    async def set_property(self, offset: Property, value: int) -> None:
        command = Command(AdminOpcode.FABRICS, FabricsType.PROPERTY_SET, cdw11=offset, cdw12=value)
        await self._run(command, what=f"set property {offset.name}")

    async def identify(self, cns: Cns, nsid: int = 0) -> bytes:
        """4096 bytes of Identify data."""
        command = Command(AdminOpcode.IDENTIFY, nsid, cdw10=cns)
        _, data = await self._run(command, incoming=IDENTIFY_BYTES, what=f"identify {cns.name.lower()}")
        return data.ljust(IDENTIFY_BYTES, b"\0")

    async def set_feature(self, feature: Feature, value: int, data: Buffer = b"") -> int:
        command = Command(AdminOpcode.SET_FEATURES, cdw10=feature, cdw11=value)
        if data:
            command.sgl_type = SGL_IN_CAPSULE
        return (await self._run(command, data, what=f"set feature {feature.name}"))[0]

    async def get_feature(self, feature: Feature, incoming: int = 0) -> tuple[int, bytes]:
        command = Command(AdminOpcode.GET_FEATURES, cdw10=feature)
        return await self._run(command, incoming=incoming, what=f"get feature {feature.name}")

    async def log_page(self, page: LogPage, length: int, *, offset: int = 0, retain: bool = False) -> bytes:
        """`length` bytes (multiple of 4) of a log page from `offset` on; `retain` keeps its event pending."""
        parts: list[bytes] = []
        for at in range(offset, offset + length, _LOG_CHUNK):
            size = min(_LOG_CHUNK, offset + length - at)
            dwords = size // 4 - 1
            command = Command(
                AdminOpcode.GET_LOG_PAGE, GLOBAL_NSID, cdw12=at & 0xFFFFFFFF, cdw13=at >> 32,
                cdw10=page | retain << 15 | (dwords & 0xFFFF) << 16, cdw11=dwords >> 16,
            )  # fmt: skip
            parts.append((await self._run(command, incoming=size, what=f"log page {page.name.lower()}"))[1])
        return b"".join(parts)

    async def keep_alive(self) -> None:
        await self._run(Command(AdminOpcode.KEEP_ALIVE), what="keep alive")

    async def abort(self, qid: int, cid: int) -> bool:
        """True when the command was aborted."""
        result, _ = await self._run(Command(AdminOpcode.ABORT, cdw10=qid | cid << 16), what="abort")
        return not result & 1

    async def next_event(self) -> tuple[int, int]:
        """Wait without limit for the next asynchronous event: (type, information)."""
        completion, _ = await self.queue.submit(Command(AdminOpcode.ASYNC_EVENT_REQUEST), timeout_s=None)
        if completion.status:
            raise CommandError("asynchronous event request", completion.status)
        return completion.result & 7, completion.result >> 8 & 0xFF

    async def _run(self, command: Command, data: Buffer = b"", *, incoming: int = 0, what: str) -> tuple[int, bytes]:
        try:
            completion, received = await self.queue.submit(command, data, incoming=incoming, timeout_s=self._timeout_s)
        except DeadlineExceeded as error:
            raise DeadlineExceeded(f"{what}: {error}") from error
        if completion.status:
            raise CommandError(what, completion.status, completion.dnr)
        return completion.result, received
