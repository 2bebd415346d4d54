"""The pure plan: what has to be called on this node's target so that it agrees with what is desired of one volume.

No I/O and no clock. `plan(desired, observed)` returns rounds; the actions of a round are independent of each other
and go out together, the rounds follow each other. Nothing to do is an empty tuple.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.model import Qos


@dataclass(frozen=True, slots=True)
class Listener:
    """An NVMe/TCP transport address."""

    address: str
    port: int


@dataclass(frozen=True, slots=True)
class DesiredReplica:
    """What one replica of a volume should look like in the target. `size_bytes` is a multiple of the cluster size."""

    volume: str
    pool: str
    nqn: str
    serial: str
    present: bool
    size_bytes: int
    thin: bool
    hosts: frozenset[str]
    listener: Listener
    qos: Qos = field(default_factory=Qos)
    exported: bool = True
    """Hosts reach it over NVMe-oF. Else it has no subsystem: a bdev is never open to two kinds of hosts at once."""
    opened: bool = False
    """Something else than a namespace holds its bdev open."""
    lvol_uuid: str = ""
    """UUID of the lvol that holds the data, once it was seen; empty while it is still to be created."""

    @property
    def bdev(self) -> str:
        """Alias of the lvol's bdev: `<lvstore>/<lvol>`."""
        return f"{self.pool}/{self.volume}"


@dataclass(frozen=True, slots=True)
class LvolSeen:
    uuid: str
    size_bytes: int
    qos: Qos = field(default_factory=Qos)


@dataclass(frozen=True, slots=True)
class SubsystemSeen:
    hosts: frozenset[str] = frozenset()
    listeners: frozenset[Listener] = frozenset()
    namespace: str = ""
    """UUID of the bdev behind namespace 1, empty when there is none."""


@dataclass(frozen=True, slots=True)
class ObservedReplica:
    """What the target has of a volume. Both None: nothing."""

    lvol: LvolSeen | None = None
    subsystem: SubsystemSeen | None = None


NOTHING = ObservedReplica()


@dataclass(frozen=True, slots=True)
class CreateLvol:
    pool: str
    name: str
    size_bytes: int
    thin: bool


@dataclass(frozen=True, slots=True)
class ResizeLvol:
    bdev: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class DeleteLvol:
    bdev: str


@dataclass(frozen=True, slots=True)
class SetQos:
    bdev: str
    qos: Qos


@dataclass(frozen=True, slots=True)
class CreateSubsystem:
    nqn: str
    serial: str


@dataclass(frozen=True, slots=True)
class DeleteSubsystem:
    nqn: str


@dataclass(frozen=True, slots=True)
class AddNamespace:
    nqn: str
    bdev: str


@dataclass(frozen=True, slots=True)
class RemoveNamespace:
    nqn: str


@dataclass(frozen=True, slots=True)
class AddListener:
    nqn: str
    listener: Listener


@dataclass(frozen=True, slots=True)
class RemoveListener:
    nqn: str
    listener: Listener


@dataclass(frozen=True, slots=True)
class AddHost:
    nqn: str
    host: str


@dataclass(frozen=True, slots=True)
class RemoveHost:
    nqn: str
    host: str


LvolAction = CreateLvol | ResizeLvol | DeleteLvol | SetQos
SubsystemAction = (
    CreateSubsystem
    | DeleteSubsystem
    | AddNamespace
    | RemoveNamespace
    | AddListener
    | RemoveListener
    | AddHost
    | RemoveHost
)
Action = LvolAction | SubsystemAction
Round = tuple[Action, ...]


def plan(desired: DesiredReplica, observed: ObservedReplica) -> tuple[Round, ...]:
    """The rounds that take `observed` to `desired`."""
    rounds = _build(desired, observed) if desired.present else _tear_down(desired, observed)
    return tuple(tuple(actions) for actions in rounds if actions)


def shut_out(desired: DesiredReplica, observed: ObservedReplica) -> Round:
    """Only what closes doors: for a volume whose data are away, and so cannot be built."""
    hosts = observed.subsystem.hosts if observed.subsystem else frozenset()
    return tuple(RemoveHost(desired.nqn, host) for host in sorted(hosts - desired.hosts))


def is_lost(desired: DesiredReplica, observed: ObservedReplica) -> bool:
    """Whether the lvol that held the data is not there. An empty one must never take its place."""
    seen = observed.lvol.uuid if observed.lvol else ""
    return desired.present and desired.lvol_uuid not in ("", seen)


def _tear_down(desired: DesiredReplica, observed: ObservedReplica) -> list[list[Action]]:
    exports: list[Action] = [DeleteSubsystem(desired.nqn)] if observed.subsystem else []
    data: list[Action] = [DeleteLvol(desired.bdev)] if observed.lvol else []
    if observed.subsystem and observed.subsystem.hosts:
        # Once the subsystem is gone no host can be writing to the lvol that is deleted next.
        return [exports, data]
    return [exports + data]


def _build(desired: DesiredReplica, observed: ObservedReplica) -> list[list[Action]]:
    lvol, subsystem = observed.lvol, observed.subsystem or SubsystemSeen()
    if is_lost(desired, observed):
        return [[RemoveHost(desired.nqn, host) for host in sorted(subsystem.hosts)]]
    first: list[Action] = []
    second: list[Action] = []
    if lvol is None:
        first.append(CreateLvol(desired.pool, desired.volume, desired.size_bytes, desired.thin))
    elif lvol.size_bytes < desired.size_bytes:
        first.append(ResizeLvol(desired.bdev, desired.size_bytes))
    if not desired.exported:
        closing: list[Action] = [DeleteSubsystem(desired.nqn)] if observed.subsystem else []
        return [closing, first, _limits_unless_stuck(desired, lvol)]
    if observed.subsystem is None:
        first.append(CreateSubsystem(desired.nqn, desired.serial))
    exported = lvol is not None and subsystem.namespace == lvol.uuid
    # Whatever closes a door goes before whatever opens one.
    first += _closing(desired, subsystem)
    if subsystem.namespace and not exported:
        first.append(RemoveNamespace(desired.nqn))
    if desired.hosts:
        # A subsystem that nobody may connect to needs neither namespace nor listener: creating a volume is one round,
        # publishing it the next. What was added once stays until the subsystem goes.
        if not exported:
            second.append(AddNamespace(desired.nqn, desired.bdev))
        if desired.listener not in subsystem.listeners:
            second.append(AddListener(desired.nqn, desired.listener))
    entering: list[Action] = [AddHost(desired.nqn, host) for host in sorted(desired.hosts - subsystem.hosts)]
    limits = _limits(desired, lvol) if exported or desired.hosts else []
    if not exported and (limits or observed.subsystem is None):
        # Rebuilt under hosts that are trying to reconnect: one that got in and found no namespace would drop the
        # device under its mounted filesystem. So they are let in once the namespace is known to be there.
        return [first, second, limits + entering]
    return [first, second + limits + entering]


def _limits(desired: DesiredReplica, lvol: LvolSeen | None) -> list[Action]:
    """SPDK changes the limits only of a bdev that is open, which a namespace sees to.

    Before that nobody reads or writes, and limits mean nothing.
    """
    return [SetQos(desired.bdev, desired.qos)] if desired.qos != (lvol.qos if lvol else Qos()) else []


def _limits_unless_stuck(desired: DesiredReplica, lvol: LvolSeen | None) -> list[Action]:
    """Of a bdev that nobody has opened the first limits can be set, so that they hold from the first I/O on."""
    first = desired.hosts and (lvol is None or lvol.qos == Qos())
    return _limits(desired, lvol) if desired.opened or first else []


def _closing(desired: DesiredReplica, subsystem: SubsystemSeen) -> list[Action]:
    hosts = sorted(subsystem.hosts - desired.hosts)
    stale = sorted(subsystem.listeners - {desired.listener}, key=lambda each: (each.address, each.port))
    return [*(RemoveHost(desired.nqn, each) for each in hosts), *(RemoveListener(desired.nqn, each) for each in stale)]
