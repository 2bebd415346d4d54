"""The disks of one machine as they are known: each looked at when it changed, and judged beside the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from agent.disks import eligibility, transport
from agent.disks import facts as facts_of
from agent.disks.eligibility import Policy, Reason
from agent.disks.facts import Facts
from agent.disks.source import NOT_LOOKED, Look, Source, Usage
from agent.host.blkid import Content, Label
from agent.model import POOL_PREFIX, Disk, DiskPhase, DiskStatus, Meta

CONCURRENT_LOOKS = 8
"""Devices read from at once: one that does not answer holds up one place, for as long as its reading may take."""

LOOK_AGAIN_S = 600.0
LOOK_AGAIN_AT_ONCE = 8
"""Without an event a changed content does not show. So the oldest looks are repeated, this many in one rescan."""

REPLACED_MAX = 3
"""How often a look starts again because another device took the name meanwhile."""


@dataclass(frozen=True, slots=True)
class Known:
    """A device and the verdict on it. `identity` is "" when it has none; it is not unique when there are `twins`."""

    name: str
    identity: str
    status: DiskStatus
    reasons: tuple[Reason, ...] = ()
    twins: tuple[str, ...] = ()
    denied: bool = False
    """What is on it was not looked at for want of rights."""
    content: Content | None = None
    """What is on it, if that could be looked at."""

    @property
    def pool(self) -> Label | None:
        """The pool that was made on this very disk, if it is there."""
        label = self.content.label if self.content else None
        return label if label and self.identity and label.name == POOL_PREFIX + self.identity else None

    @property
    def disk(self) -> Disk | None:
        """The resource of this disk; None for one that cannot be told from others."""
        return Disk(Meta(self.identity), status=self.status) if self.identity and not self.twins else None


class Kind(StrEnum):
    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Change:
    """`known` is how it is now; of a removed device, how it was."""

    kind: Kind
    known: Known


@dataclass(frozen=True, slots=True)
class Differences:
    """What a comparison found: changes that are entered already, and names that want a look."""

    changes: list[Change]
    names: list[str]


@dataclass(slots=True)
class _Entry:
    facts: Facts
    look: Look
    looked_at: float
    known: Known | None = None


class Inventory:
    """What is known of the disks of a `source`. `node` goes into their status, not into their identity.

    `look` may run for several devices at once; a second one of the same device waits for the first.
    """

    def __init__(
        self,
        source: Source,
        node: str = "",
        policy: Policy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._node = node
        self._policy = policy or Policy()
        self._clock = clock
        self._entries = dict[str, _Entry]()
        self._by_identity = dict[str, set[str]]()
        self._places = asyncio.Semaphore(CONCURRENT_LOOKS)
        self._turns = dict[str, asyncio.Lock]()
        self._unseen: tuple[str, ...] = ()
        self.away: Callable[[], Mapping[str, Known]] = dict
        """Tells the disks that have a user-space driver, by identity."""

    @property
    def known(self) -> Mapping[str, Known]:
        """By kernel name, as of now."""
        return {name: entry.known for name, entry in self._entries.items() if entry.known is not None}

    @property
    def unseen(self) -> tuple[str, ...]:
        """What could not be looked at, in words."""
        return self._unseen

    def find(self, identity: str) -> list[Known]:
        """The devices that say to be this disk: none, one, or several of which none is to be used.

        A disk that the kernel does not have may be `away`, with the target.
        """
        names = sorted(self._by_identity.get(identity, ()))
        found = [known for name in names if (known := self._entries[name].known) is not None]
        if found or not (away := self.away().get(identity)):
            return found
        return [replace(away, status=replace(away.status, node=self._node))]

    async def verdict(self, name: str) -> Known | None:
        """A fresh look at a device, for whoever is about to write to it. What is known of it stays as it is.

        None: it is gone.
        """
        async with self._places:
            found, look = await self._examine(name, await self.usage())
        return self._verdict(found, look) if found is not None else None

    async def scan(self) -> list[Change]:
        """Look at everything that is new, gone or different; only that is read from."""
        usage = await self.usage()
        differences = await self.differing(usage)
        found = await asyncio.gather(*(self.look(name, usage) for name in differences.names))
        return [*differences.changes, *(change for each in found for change in each)]

    async def usage(self) -> Usage:
        """Who uses block devices now: one answer may serve many looks, since the table of mounts may be long."""
        self._unseen = (usage := await asyncio.to_thread(self._source.usage)).unseen
        return usage

    async def differing(self, usage: Usage) -> Differences:
        """Compare all facts with those known. Reads from no device; mounts that came or went need no such look."""
        entries = dict(self._entries)
        wanted, moved = await asyncio.to_thread(self._compare, entries, usage)
        changed = [name for name in moved if self._take(name, entries[name], moved[name])]
        return Differences(self._judge(changed), sorted(wanted))

    async def look(self, name: str, usage: Usage | None = None) -> list[Change]:
        """Look at one device: read its facts and its content, then judge it and those it has to do with.

        Others are not read from; of devices that it is built of (dm, md, loop) the facts are read again.
        """
        async with self._turns.setdefault(name, asyncio.Lock()), self._places:
            usage = usage or await self.usage()
            before = self._entries.get(name)
            found, look = await self._examine(name, usage)
            below = {*(before.facts.below if before else ()), *(found.below if found else ())}
            touched = self._enter(name, found, look)
            touched |= await self._refresh(below - {name}, usage)
        return self._judge(touched | {name}, before)

    def _compare(self, entries: Mapping[str, _Entry], usage: Usage) -> tuple[set[str], dict[str, Facts]]:
        names = set(self._source.names())
        wanted, moved = names ^ entries.keys(), dict[str, Facts]()
        for name in names & entries.keys():
            found, known = facts_of.read(self._source, name, usage), entries[name].facts
            if found is None or not found.same_device_as(known):
                wanted.add(name)
            elif found != known:
                moved[name] = found
        due = self._clock() - LOOK_AGAIN_S
        aged = sorted((entry.looked_at, name) for name, entry in entries.items() if entry.looked_at < due)
        readable = [name for _, name in aged if eligibility.worth_reading(entries[name].facts)]
        return wanted.union(readable[:LOOK_AGAIN_AT_ONCE]), moved

    async def _examine(self, name: str, usage: Usage) -> tuple[Facts | None, Look]:
        for _ in range(REPLACED_MAX):
            found = await asyncio.to_thread(facts_of.read, self._source, name, usage)
            if found is None or not eligibility.worth_reading(found):
                return found, NOT_LOOKED
            look = await self._source.look(name, found.node)
            again = await asyncio.to_thread(facts_of.read, self._source, name, usage)
            if again is None:
                return None, NOT_LOOKED
            if again.sequence == found.sequence and again.identity == found.identity:
                return again, look
        return again, Look(problem="other devices keep taking its name")

    async def _refresh(self, names: Collection[str], usage: Usage) -> set[str]:
        """Read the facts of devices again whose content stays as it was seen. Returns those to judge."""
        touched = set[str]()
        for name in names:
            entry = self._entries.get(name)
            found = await asyncio.to_thread(facts_of.read, self._source, name, usage)
            if entry is not None and found is not None and self._take(name, entry, found):
                touched.add(name)
        return touched

    def _take(self, name: str, entry: _Entry, found: Facts) -> bool:
        """Take over new facts. Not those of another device, nor of one that was looked at by itself meanwhile."""
        same = found.sequence == entry.facts.sequence and found.identity == entry.facts.identity
        if not same or self._entries.get(name) is not entry:
            return False
        entry.facts = found
        return True

    def _enter(self, name: str, found: Facts | None, look: Look) -> set[str]:
        """Take note of what was found; returns all that share an identity with it, before or now."""
        before = self._entries.pop(name, None)
        touched = set[str]()
        if before and before.facts.identity:
            group = self._by_identity[before.facts.identity]
            group.discard(name)
            touched |= group
            if not group:
                del self._by_identity[before.facts.identity]
        if found is None:
            return touched
        known = before.known if before else None
        self._entries[name] = _Entry(found, look, self._clock(), known)
        if found.identity:
            group = self._by_identity.setdefault(found.identity, set())
            group.add(name)
            touched |= group
        return touched

    def _judge(self, names: Iterable[str], before: _Entry | None = None) -> list[Change]:
        changes = []
        for name in sorted(names):
            entry = self._entries.get(name)
            if entry is None:
                if before and before.known and before.known.name == name:
                    changes.append(Change(Kind.REMOVED, before.known))
                continue
            was, entry.known = entry.known, self._verdict(entry.facts, entry.look)
            if was is None:
                changes.append(Change(Kind.ADDED, entry.known))
            elif was.identity != entry.known.identity or was.status.disk_sequence != entry.known.status.disk_sequence:
                changes += [Change(Kind.REMOVED, was), Change(Kind.ADDED, entry.known)]
            elif was != entry.known:
                changes.append(Change(Kind.CHANGED, entry.known))
        return changes

    def _verdict(self, facts: Facts, look: Look) -> Known:
        twins = tuple(sorted(self._by_identity.get(facts.identity, set()) - {facts.name}))
        reasons = eligibility.reasons(facts, look, twins, self._policy)
        return Known(
            facts.name,
            facts.identity,
            replace(status(facts, look, reasons), node=self._node),
            reasons,
            twins,
            look.denied,
            look.content,
        )


def status(facts: Facts, look: Look, reasons: Collection[Reason]) -> DiskStatus:
    """The observed status of a disk, without its node."""
    content = look.content
    signatures = facts.told_content
    if content is not None:
        signatures = () if content.blank else (facts_of.clean(content.description),)
    return DiskStatus(
        path=facts_of.clean(facts.node),
        links=facts.links,
        serial=facts.serial,
        wwid=facts.wwid,
        model=facts.model,
        firmware=facts.firmware,
        transport=facts.transport.value,
        rotational=facts.rotational,
        size_bytes=facts.size_bytes or 0,
        block_bytes=facts.block_bytes or 0,
        physical_block_bytes=facts.physical_block_bytes or 0,
        numa_node=facts.numa_node,
        pci_addresses=facts.pci_addresses,
        partitions=tuple(partition.name for partition in facts.partitions),
        holders=facts.holders,
        mount_points=facts.mounts,
        signatures=signatures,
        disk_sequence=facts.sequence or 0,
        tier=transport.tier(facts.transport, facts.rotational),
        eligible=not reasons,
        reasons=tuple(facts_of.clean(reason.text) for reason in reasons),
        phase=DiskPhase.INELIGIBLE if reasons else DiskPhase.AVAILABLE,
    )
