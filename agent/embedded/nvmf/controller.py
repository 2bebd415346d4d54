"""A controller of the embedded target: the association of one host with one subsystem, from Connect to its end."""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import Protocol

from agent.embedded.nvmf.events import Events
from agent.embedded.nvmf.registers import Change, Registers
from agent.embedded.nvmf.settings import ASSOCIATION_TIMEOUT_S, DISCOVERY_KATO_MS, TransportSettings
from agent.embedded.nvmf.subsystem import Address, Listener, Namespace, Subsystem
from agent.nvmf.command import AdminOpcode, EventInfo, Feature
from agent.nvmf.identify import AnaState, OptionalEvents

log = logging.getLogger(__name__)


class QueuePair(Protocol):
    """What a controller needs of the transport connection that carries one of its queues."""

    qid: int
    local: Address
    peer: Address

    def close(self, reason: str) -> None: ...
    async def finished(self) -> None: ...


class Controller:
    """State of an association. `generation` is the discovery log's generation counter."""

    def __init__(
        self, subsystem: Subsystem, cntlid: int, host: tuple[str, uuid.UUID], listener: Listener | None,
        settings: TransportSettings, kato_ms: int,
    ) -> None:  # fmt: skip
        self.subsystem = subsystem
        self.cntlid = cntlid
        self.hostnqn, self.hostid = host
        self.listener = listener
        self.settings = settings
        self.registers = Registers(settings.max_queue_depth)
        self.queues: dict[int, QueuePair] = {}
        self._ending: set[QueuePair] = set()
        self.kato_ms = settings.keep_alive_ms(kato_ms) if kato_ms else 0
        self.features: dict[Feature, int] = {Feature.VOLATILE_WRITE_CACHE: 1}
        self.host_behavior = bytes(512)
        self.reads = self.writes = self.bytes_read = self.bytes_written = 0
        enabled = OptionalEvents.NAMESPACE_ATTRIBUTE
        if subsystem.options.ana_reporting:
            enabled |= OptionalEvents.ANA_CHANGE
        if subsystem.is_discovery:
            enabled = OptionalEvents.DISCOVERY_LOG if self.kato_ms else OptionalEvents.NONE
            self.kato_ms = self.kato_ms or DISCOVERY_KATO_MS
        self.events = Events(enabled)
        self._timer: asyncio.TimerHandle | None = None
        self._association: asyncio.TimerHandle | None = None
        self.keep_alive()

    # --- what the subsystem tells ---------------------------------------------------------------------------------

    def namespace_changed(self, nsid: int) -> None:
        self.events.namespace_changed(nsid)

    def ana_changed(self) -> None:
        self.events.notice(EventInfo.ANA_CHANGE)

    def discovery_changed(self) -> None:
        self.events.notice(EventInfo.DISCOVERY_LOG)

    def ana_state(self, namespace: Namespace) -> AnaState:
        return self.subsystem.ana_state(self.listener, namespace.ana_group)

    # --- queues ---------------------------------------------------------------------------------------------------

    def add_queue(self, queue: QueuePair) -> None:
        self.queues[queue.qid] = queue

    def queue_gone(self, queue: QueuePair) -> None:
        """A connection ended; with the admin queue the whole association ends."""
        if self.queues.get(queue.qid) is not queue:
            return
        self._close_queue(queue.qid, "connection ended")
        if queue.qid == 0:
            self.disconnect("admin queue closed")

    def queue_finished(self, queue: QueuePair) -> None:
        """The I/O of a connection that ended is over too."""
        self._ending.discard(queue)
        if not self._ending:
            self.subsystem.ending.discard(self)

    def disconnect(self, reason: str) -> None:
        """End the association now: no command of this host is taken any more."""
        if self.subsystem.controllers.get(self.cntlid) is self:
            del self.subsystem.controllers[self.cntlid]
            log.info("controller %d of %s for %s ends: %s", self.cntlid, self.subsystem.nqn, self.hostnqn, reason)
        for timer in (self._timer, self._association):
            if timer is not None:
                timer.cancel()
        for qid in list(self.queues):
            self._close_queue(qid, reason)

    async def drained(self) -> None:
        """Return when no I/O of queues that were cut can touch a bdev any more."""
        await asyncio.gather(*(queue.finished() for queue in list(self._ending)))

    def _close_queue(self, qid: int, reason: str) -> None:
        queue = self.queues.pop(qid)
        self._ending.add(queue)
        self.subsystem.ending.add(self)
        queue.close(reason)

    def abort(self, qid: int, cid: int) -> bool:
        """Abort a command. Only asynchronous event requests can be; I/O runs to its end."""
        return qid == 0 and self.events.abort(cid)

    # --- keep alive, enable, shutdown -----------------------------------------------------------------------------

    def keep_alive(self) -> None:
        """Start the keep alive timer again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.kato_ms:
            self._timer = asyncio.get_running_loop().call_later(self.kato_ms / 1000, self._expired)

    def set_kato(self, asked_ms: int) -> None:
        self.kato_ms = self.settings.keep_alive_ms(asked_ms)
        self.keep_alive()

    def _expired(self) -> None:
        self.registers.fail()
        self.disconnect(f"no keep alive for {self.kato_ms} ms")

    def change(self, change: Change) -> None:
        """Carry out what a write of the CC property asked for."""
        if change is Change.NONE:
            return
        if self._association is not None:
            self._association.cancel()
            self._association = None
        if change is Change.ENABLE:
            return
        for qid in [qid for qid in self.queues if qid]:
            self._close_queue(qid, "controller is being disabled")
        if change is Change.RESET:
            self.registers.reset()
        else:
            self.registers.shut_down()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        loop = asyncio.get_running_loop()
        self._association = loop.call_later(ASSOCIATION_TIMEOUT_S, self.disconnect, "association timeout")


ADMIN_OPCODES = frozenset(AdminOpcode) - {AdminOpcode.FABRICS}
DISCOVERY_OPCODES = ADMIN_OPCODES - {AdminOpcode.ABORT}
