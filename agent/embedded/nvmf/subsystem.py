"""Subsystems of the embedded target: namespaces, allowed hosts, listeners with their ANA states, controllers."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from agent.embedded.bdev import Bdev, BdevEvent
from agent.embedded.nvmf.nqn import DISCOVERY_NQN
from agent.nvmf.identify import AnaState
from agent.nvmf.logs import AnaGroup

MIN_CNTLID, MAX_CNTLID = 1, 0xFFEF
DEFAULT_NAMESPACES = 32
CLAIM = "NVMe-oF Target"


class Address(NamedTuple):
    """A transport address of NVMe/TCP. `service` is the port, as text as in the RPCs."""

    family: str
    host: str
    service: str


class Association(Protocol):
    """What a subsystem needs of the controllers that are connected to it."""

    cntlid: int
    hostnqn: str
    hostid: uuid.UUID
    listener: Listener | None

    def disconnect(self, reason: str) -> None: ...
    async def drained(self) -> None: ...
    def namespace_changed(self, nsid: int) -> None: ...
    def ana_changed(self) -> None: ...


@dataclass(slots=True)
class Listener:
    """An address at which a subsystem can be reached, with the ANA state of each group there."""

    identifier: int
    address: Address
    default_state: AnaState = AnaState.OPTIMIZED
    states: dict[int, AnaState] = field(default_factory=dict)

    def state(self, group: int) -> AnaState:
        return self.states.get(group, self.default_state)

    def set_state(self, state: AnaState, group: int | None) -> None:
        """Set one group, or all when `group` is None."""
        if group is None:
            self.default_state = state
            self.states.clear()
        else:
            self.states[group] = state


@dataclass(slots=True)
class Namespace:
    """A bdev under a namespace identifier. `outstanding` counts the I/O in flight."""

    nsid: int
    bdev: Bdev
    uuid: uuid.UUID
    nguid: bytes
    eui64: bytes
    ana_group: int
    unsubscribe: Callable[[], None] = lambda: None
    outstanding: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self) -> None:
        self.outstanding += 1

    def end(self) -> None:
        self.outstanding -= 1
        if self.outstanding == 0:
            self.idle.set()

    async def drained(self) -> None:
        """Return when no I/O is in flight."""
        while self.outstanding:
            self.idle.clear()
            await self.idle.wait()


@dataclass(frozen=True, slots=True)
class SubsystemOptions:
    """What `nvmf_create_subsystem` sets. `dmrsl` is in blocks of 512 bytes, `wzsl` a power of two of 4 KiB."""

    serial: str = "0" * 20
    model: str = "SPDK bdev Controller"
    max_namespaces: int = DEFAULT_NAMESPACES
    ana_reporting: bool = False
    min_cntlid: int = MIN_CNTLID
    max_cntlid: int = MAX_CNTLID
    dmrsl: int = 2097152
    wzsl: int = 12


class Subsystem:
    """Made by the target; `changed` is called when its discovery log entries change (with the host it matters to)."""

    def __init__(self, nqn: str, options: SubsystemOptions, changed: Callable[[str | None], None]) -> None:
        self.nqn = nqn
        self.options = options
        self.allow_any_host = False
        self.hosts: list[str] = []
        self.listeners: dict[Address, Listener] = {}
        self.namespaces: dict[int, Namespace] = {}
        self.controllers: dict[int, Association] = {}
        self.ending: set[Association] = set()
        """Controllers with queues that were cut while I/O of theirs is still in a bdev."""
        self.deleted = False
        self._changed = changed
        self._next_cntlid = options.min_cntlid

    @property
    def is_discovery(self) -> bool:
        return self.nqn == DISCOVERY_NQN

    # --- access ---------------------------------------------------------------------------------------------------

    def host_allowed(self, hostnqn: str) -> bool:
        return self.allow_any_host or hostnqn in self.hosts

    def address_allowed(self, address: Address) -> bool:
        return self.is_discovery or address in self.listeners

    def add_host(self, hostnqn: str) -> None:
        self.hosts.insert(0, hostnqn)
        self._changed(hostnqn)

    def remove_host(self, hostnqn: str) -> list[Association]:
        """Forbid the host and cut what it has open, which is returned: once drained, this is the fence."""
        self.hosts.remove(hostnqn)
        self._changed(hostnqn)
        return self._cut("host removed", lambda controller: controller.hostnqn == hostnqn)

    def set_allow_any_host(self, allowed: bool) -> None:
        """Hosts that are connected stay connected, as with the real target."""
        self.allow_any_host = allowed
        self._changed(None)

    # --- listeners ------------------------------------------------------------------------------------------------

    def add_listener(self, address: Address, state: AnaState) -> None:
        used = {listener.identifier for listener in self.listeners.values()}
        identifier = next(number for number in range(len(used) + 1) if number not in used)
        self.listeners[address] = Listener(identifier, address, state)
        self._changed(None)

    def remove_listener(self, address: Address) -> list[Association]:
        """Returns the controllers that were cut."""
        listener = self.listeners.pop(address)
        self._changed(None)
        return self._cut("listener removed", lambda controller: controller.listener is listener)

    def set_ana_state(self, listener: Listener, state: AnaState, group: int | None) -> None:
        listener.set_state(state, group)
        for controller in list(self.controllers.values()):
            if controller.listener is listener:
                controller.ana_changed()

    def ana_state(self, listener: Listener | None, group: int) -> AnaState:
        if not self.options.ana_reporting:
            return AnaState.OPTIMIZED
        return listener.state(group) if listener is not None else AnaState.INACCESSIBLE

    def ana_groups(self, listener: Listener | None) -> list[AnaGroup]:
        """The groups that have namespaces, as seen at `listener`."""
        members: dict[int, list[int]] = {}
        for namespace in self.sorted_namespaces():
            members.setdefault(namespace.ana_group, []).append(namespace.nsid)
        return [AnaGroup(group, self.ana_state(listener, group), tuple(members[group])) for group in sorted(members)]

    # --- namespaces -----------------------------------------------------------------------------------------------

    def sorted_namespaces(self) -> Iterator[Namespace]:
        return (self.namespaces[nsid] for nsid in sorted(self.namespaces))

    def free_nsid(self) -> int | None:
        """The lowest identifier that is free, or None."""
        limit = self.options.max_namespaces
        return next((nsid for nsid in range(1, limit + 1) if nsid not in self.namespaces), None)

    def add_namespace(self, namespace: Namespace) -> None:
        """Show the namespace to the hosts; its bdev is claimed already."""
        self.namespaces[namespace.nsid] = namespace
        namespace.unsubscribe = namespace.bdev.subscribe(lambda _bdev, event: self._bdev_event(namespace, event))
        self._tell(namespace.nsid)

    def remove_namespace(self, nsid: int) -> Namespace:
        """Take the namespace away from the hosts at once; I/O in flight still runs on its bdev."""
        namespace = self.namespaces.pop(nsid)
        namespace.unsubscribe()
        if namespace.bdev.claimed_by == CLAIM:
            namespace.bdev.release()
        self._tell(nsid)
        return namespace

    def set_ana_group(self, namespace: Namespace, group: int) -> None:
        namespace.ana_group = group
        for controller in list(self.controllers.values()):
            controller.ana_changed()

    def _bdev_event(self, namespace: Namespace, event: BdevEvent) -> None:
        if event is BdevEvent.RESIZE:
            self._tell(namespace.nsid)
        elif self.namespaces.get(namespace.nsid) is namespace:
            self.remove_namespace(namespace.nsid)

    def _tell(self, nsid: int) -> None:
        for controller in list(self.controllers.values()):
            controller.namespace_changed(nsid)

    # --- controllers ----------------------------------------------------------------------------------------------

    def take_cntlid(self) -> int | None:
        """The next free controller identifier, round robin so that one is not reused soon; None when all are taken."""
        low, high = self.options.min_cntlid, self.options.max_cntlid
        for _ in range(low, high + 1):
            cntlid = self._next_cntlid
            self._next_cntlid = low if cntlid >= high else cntlid + 1
            if cntlid not in self.controllers:
                return cntlid
        return None

    def _cut(self, reason: str, concerned: Callable[[Association], bool]) -> list[Association]:
        """Disconnect; returns these and the ones that were cut before and still have I/O in a bdev."""
        for controller in [each for each in self.controllers.values() if concerned(each)]:
            controller.disconnect(reason)
        return [controller for controller in self.ending if concerned(controller)]

    def close(self, reason: str) -> list[Association]:
        """Let go of everything: controllers, which are returned, listeners, namespaces."""
        self.deleted = True
        cut = self._cut(reason, lambda _controller: True)
        for nsid in list(self.namespaces):
            self.remove_namespace(nsid)
        self.listeners.clear()
        self._changed(None)
        return cut


async def drained(associations: Iterable[Association]) -> None:
    """Return when nothing of them can touch a bdev any more."""
    await asyncio.gather(*(association.drained() for association in associations))
