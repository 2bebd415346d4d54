"""The NVMe-oF target: its transport, ports and subsystems, and who may connect to them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid

from agent.embedded.nvmf import admin, io
from agent.embedded.nvmf.connection import Connection
from agent.embedded.nvmf.controller import Controller
from agent.embedded.nvmf.nqn import DISCOVERY_NQN, NQN_BYTES_MAX
from agent.embedded.nvmf.ports import Ports
from agent.embedded.nvmf.request import Refusal, Reply, Request
from agent.embedded.nvmf.settings import TransportSettings
from agent.embedded.nvmf.subsystem import Subsystem, SubsystemOptions, drained
from agent.nvmf import logs
from agent.nvmf.admin import CONNECT_BYTES, unpack_connect
from agent.nvmf.command import DYNAMIC_CNTLID, Command
from agent.nvmf.status import Status

log = logging.getLogger(__name__)

_OFFSET_CNTLID, _OFFSET_SUBNQN, _OFFSET_HOSTNQN = 16, 256, 512
_CLOSE_S = 5.0
"""How long to wait for I/O that is stuck in a bdev when the target ends."""
_OFFSET_QID, _OFFSET_SQSIZE = 42, 44


class Target:
    """`transport` is None until `nvmf_create_transport`. Subsystems are found by NQN in constant time."""

    def __init__(self, bind_address: str | None = None, max_subsystems: int = 1024) -> None:
        self.transport: TransportSettings | None = None
        self.subsystems: dict[str, Subsystem] = {}
        self.max_subsystems = max_subsystems
        self.ports = Ports(self, bind_address)
        self.generation = 0
        self.completed_io = 0
        self.admin_queues = 0
        self.io_queues = 0
        self._discovery_log: tuple[int, str, bytes] | None = None
        discovery = self.create(DISCOVERY_NQN, SubsystemOptions(max_namespaces=0))
        discovery.allow_any_host = True

    @property
    def settings(self) -> TransportSettings:
        return self.transport or TransportSettings()

    # --- subsystems -----------------------------------------------------------------------------------------------

    def create(self, nqn: str, options: SubsystemOptions) -> Subsystem:
        """A new subsystem; the caller checked the name."""
        subsystem = Subsystem(nqn, options, self._discovery_changed)
        self.subsystems[nqn] = subsystem
        return subsystem

    async def delete(self, nqn: str) -> None:
        """Remove a subsystem with everything that is connected to it; returns when its I/O has ended."""
        subsystem = self.subsystems.pop(nqn)
        addresses = list(subsystem.listeners)
        cut = subsystem.close("subsystem deleted")
        await drained(cut)
        for address in addresses:
            await self.ports.release(address)

    async def close(self) -> None:
        """Cut all hosts and stop listening."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await asyncio.gather(*(self.delete(nqn) for nqn in list(self.subsystems)))
        await self.ports.close()

    # --- discovery ------------------------------------------------------------------------------------------------

    def discovery_log(self, hostnqn: str) -> bytes:
        """The log page as `hostnqn` may see it: subsystems that let it in, at all their listeners."""
        cached = self._discovery_log
        if cached is not None and cached[:2] == (self.generation, hostnqn):
            return cached[2]
        entries = [
            logs.DiscoveryEntry(
                address_family=logs.ADRFAM_IPV6 if address.family == "IPv6" else logs.ADRFAM_IPV4,
                subtype=logs.SUBTYPE_CURRENT_DISCOVERY if subsystem.is_discovery else logs.SUBTYPE_NVME,
                flags=logs.DISCOVERY_SAME_LOG | logs.DISCOVERY_PERSISTENT if subsystem.is_discovery else 0,
                port_id=listener.identifier,
                admin_queue_size=self.settings.max_aq_depth,
                service=address.service,
                subnqn=subsystem.nqn,
                address=address.host,
            )
            for _, subsystem in sorted(self.subsystems.items())
            if subsystem.host_allowed(hostnqn)
            for address, listener in subsystem.listeners.items()
        ]
        page = logs.pack_discovery(entries, self.generation)
        self._discovery_log = (self.generation, hostnqn, page)
        return page

    def _discovery_changed(self, hostnqn: str | None) -> None:
        self.generation += 1
        discovery = self.subsystems.get(DISCOVERY_NQN)
        for controller in list(discovery.controllers.values()) if discovery else ():
            if isinstance(controller, Controller) and hostnqn in (None, controller.hostnqn):
                controller.discovery_changed()

    # --- commands -------------------------------------------------------------------------------------------------

    async def execute(self, connection: Connection, request: Request) -> Reply:
        """One command from a connection; raises Refusal."""
        controller = connection.controller
        if controller is None:
            command = request.command
            if not command.is_fabrics or command.fabrics_type != 1:
                raise Refusal(Status.COMMAND_SEQUENCE_ERROR)
            return self._connect(connection, request)
        if connection.qid == 0:
            return await admin.execute(controller, request, self.discovery_log)
        self.completed_io += 1
        return await io.execute(controller, request)

    def _connect(self, connection: Connection, request: Request) -> Reply:
        if len(request.data) < CONNECT_BYTES:
            raise Refusal(Status.INVALID_FIELD)
        hostid, cntlid, raw_subnqn, raw_hostnqn = unpack_connect(bytes(request.data))
        subsystem = self.subsystems.get(_text(raw_subnqn, _OFFSET_SUBNQN))
        if subsystem is None:
            raise _invalid_data(_OFFSET_SUBNQN)
        hostnqn = _text(raw_hostnqn, _OFFSET_HOSTNQN)
        if not subsystem.host_allowed(hostnqn) or not subsystem.address_allowed(connection.local):
            log.info("%s does not let %s in at %s", subsystem.nqn, hostnqn, connection.local)
            raise Refusal(Status.CONNECT_INVALID_HOST)
        queue_size = self._check_connect(request.command)
        qid = request.command.cdw10 >> 16
        if qid == 0:
            controller = self._new_controller(connection, subsystem, request.command, cntlid, (hostnqn, hostid))
            self.admin_queues += 1
        else:
            controller = self._find_controller(connection, subsystem, cntlid, hostnqn, qid)
            self.io_queues += 1
        connection.associate(controller, qid, queue_size)
        return Reply(controller.cntlid)

    def _check_connect(self, command: Command) -> int:
        """Number of entries of the queue; raises Refusal."""
        if command.cdw10 & 0xFFFF:
            raise Refusal(Status.CONNECT_INCOMPATIBLE_FORMAT)
        size = (command.cdw11 & 0xFFFF) + 1
        qid = command.cdw10 >> 16
        limit = self.settings.max_queue_depth if qid else self.settings.max_aq_depth
        if not 2 <= size <= limit:
            raise _invalid_command(_OFFSET_SQSIZE)
        return size

    def _new_controller(
        self, connection: Connection, subsystem: Subsystem, command: Command, cntlid: int, host: tuple[str, uuid.UUID]
    ) -> Controller:
        if cntlid != DYNAMIC_CNTLID:
            raise _invalid_data(_OFFSET_CNTLID)
        number = subsystem.take_cntlid()
        if number is None:
            raise Refusal(Status.INTERNAL_ERROR)
        listener = subsystem.listeners.get(connection.local)
        controller = Controller(subsystem, number, host, listener, self.settings, command.cdw12)
        subsystem.controllers[number] = controller
        return controller

    def _find_controller(
        self, connection: Connection, subsystem: Subsystem, cntlid: int, hostnqn: str, qid: int
    ) -> Controller:
        controller = subsystem.controllers.get(cntlid)
        if not isinstance(controller, Controller) or controller.hostnqn != hostnqn:
            raise _invalid_data(_OFFSET_CNTLID)
        same_port = controller.listener is subsystem.listeners.get(connection.local)
        ready = controller.registers.enabled and controller.registers.entry_sizes_set
        if subsystem.is_discovery or not ready or not (same_port or not subsystem.options.ana_reporting):
            raise _invalid_command(_OFFSET_QID)
        if qid > self.settings.max_io_qpairs_per_ctrlr or qid in controller.queues:
            raise Refusal(Status.INVALID_QUEUE_IDENTIFIER)
        return controller


def _invalid_command(offset: int) -> Refusal:
    return Refusal(Status.CONNECT_INVALID_PARAMETERS, result=offset)


def _invalid_data(offset: int) -> Refusal:
    return Refusal(Status.CONNECT_INVALID_PARAMETERS, result=offset | 1 << 16)


def _text(field: bytes, offset: int) -> str:
    """An NQN field of the Connect data; raises Refusal when it is not terminated or not text."""
    name, terminator, _ = field.partition(b"\0")
    try:
        text = name.decode()
    except UnicodeDecodeError as error:
        raise _invalid_data(offset) from error
    if not terminator or len(name) > NQN_BYTES_MAX:
        raise _invalid_data(offset)
    return text
