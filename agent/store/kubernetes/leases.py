"""Leases of the Kubernetes API: who leads, and who is alive. Nobody's clock is compared with another's.

A Lease counts as held for its duration after the last change that was *seen*, on the own monotonic clock; its holder
counts from before it asked for the renewal, so it always gives up first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from agent.errors import AlreadyExists, Conflict, FailedPrecondition, NotFound, QuarryError, Unavailable
from agent.store.kubernetes.connection import Connection
from agent.store.kubernetes.refusals import Asked
from agent.tasks.failures import FAILURES

log = logging.getLogger(__name__)

HEARTBEATS_LOOK_S = 5.0
"""Between looks at the Leases of the nodes."""

_SAFETY_S = 1.0
"""The holder stops this long before others may take the Lease."""


@dataclass(frozen=True, slots=True)
class Lease:
    """What the API says of one. `renewed` is compared with itself only."""

    name: str
    holder: str
    renewed: str
    duration_s: int
    version: str


class Leases:
    """The Leases of one namespace.

    What is asked of them waits for nothing else that is asked of the API: one that has much to do is not dead.
    """

    def __init__(self, connection: Connection, namespace: str) -> None:
        self._connection = connection
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._namespace = namespace

    async def list(self) -> list[Lease]:
        answer = await self._connection.request("GET", self._path, Asked("Lease"), urgent=True)
        return [_read(each) for each in answer.get("items", ())]

    async def get(self, name: str) -> Lease | None:
        try:
            answer = await self._connection.request("GET", f"{self._path}/{name}", Asked("Lease", name), urgent=True)
        except NotFound:
            return None
        return _read(answer)

    async def write(self, name: str, holder: str, duration_s: int, version: str) -> Lease:
        """Make it (`version` empty) or take it over. Raises AlreadyExists, Conflict when another was faster."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        body: dict[str, Any] = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": name, "namespace": self._namespace},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": duration_s, "renewTime": now},
        }
        asked = Asked("Lease", name)
        if not version:
            return _read(await self._connection.request("POST", self._path, asked, body=body, urgent=True))
        body["metadata"]["resourceVersion"] = version
        return _read(await self._connection.request("PUT", f"{self._path}/{name}", asked, body=body, urgent=True))

    async def delete(self, name: str) -> None:
        """Absent is fine."""
        with suppress(NotFound):
            await self._connection.request("DELETE", f"{self._path}/{name}", Asked("Lease", name))


class Holder:
    """Takes one Lease and keeps it. `holds` is true only while nobody else can have it."""

    def __init__(self, leases: Leases, name: str, identity: str, *, lease_s: int, renew_s: float) -> None:
        self._leases = leases
        self._name = name
        self._identity = identity
        self._lease_s = lease_s
        self._renew_s = renew_s
        self._until = 0.0
        self._held: Lease | None = None
        self.leader = ""
        """Who was seen to hold it last."""

    @property
    def until(self) -> float:
        """It is held until then, on time.monotonic()."""
        return self._until

    @property
    def holds(self) -> bool:
        return time.monotonic() < self._until

    async def acquire(self, *, refuse_renewed: bool = False) -> None:
        """Returns when it is held. `refuse_renewed`: FailedPrecondition when another is seen to renew it."""
        seen: Lease | None = None
        since = time.monotonic()
        while True:
            asked_at = time.monotonic()
            try:
                found = await self._leases.get(self._name)
                if found is None or seen is None or found.version != seen.version:
                    if refuse_renewed and self._is_anothers(seen) and self._is_anothers(found):
                        raise FailedPrecondition(
                            f"another agent, {found.holder if found else ''}, holds Lease {self._name}: "
                            "stop it, or give this one another node name"
                        )
                    seen, since = found, asked_at
                self.leader = found.holder if found else ""
                duration_s = found.duration_s if found else 0
                if not self._is_anothers(found) or time.monotonic() - since > duration_s:
                    await self._write(found.version if found else "")
                    return
            except (Conflict, AlreadyExists, NotFound):
                log.info("Lease %s was taken by another", self._name)
            except Unavailable as error:
                log.warning("Lease %s: %s", self._name, error)
            await asyncio.sleep(self._renew_s / 4)

    async def keep(self, *, for_ever: bool = False) -> None:
        """Renews it; returns when it is lost. `for_ever`: only when another has it, however long the API is away."""
        while True:
            await asyncio.sleep(self._renew_s if self.holds else self._renew_s / 4)
            while True:
                try:
                    async with asyncio.timeout(None if for_ever else max(0.0, self._until - time.monotonic())):
                        await self._renew()
                    FAILURES.succeeded("lease")
                    break
                except (Conflict, AlreadyExists, NotFound):
                    if await self._is_lost():
                        return
                except TimeoutError:
                    log.error("Lease %s could not be renewed in time", self._name)
                    return
                except Exception as error:  # noqa: BLE001 - whatever it was, the Lease is lost by time only
                    FAILURES.failed("lease", error, f"Lease {self._name} is renewed soon again")
                if not for_ever and not self.holds:
                    return
                await asyncio.sleep(self._renew_s / 5)

    async def release(self) -> None:
        """Let others have it at once."""
        held, self._held, was_held = self._held, None, self.holds
        self._until = 0.0
        if held is None or not was_held:
            return
        try:
            async with asyncio.timeout(2.0):
                await self._leases.write(self._name, "", 1, held.version)
        except (QuarryError, TimeoutError) as error:
            log.info("Lease %s was not given back: %s", self._name, error)

    async def _renew(self) -> None:
        await self._write(self._held.version if self._held else "")

    async def _write(self, version: str) -> None:
        asked_at = time.monotonic()
        self._held = await self._leases.write(self._name, self._identity, self._lease_s, version)
        self._until = asked_at + self._lease_s - _SAFETY_S
        self.leader = self._identity

    async def _is_lost(self) -> bool:
        """Look at it anew: a renewal whose answer was lost leaves another version behind."""
        try:
            found = await self._leases.get(self._name)
        except QuarryError:
            return False
        if found is not None and found.holder != self._identity:
            log.error("Lease %s is held by %s now", self._name, found.holder or "nobody")
            self._until = 0.0
            return True
        self._held = found
        return False

    def _is_anothers(self, lease: Lease | None) -> bool:
        return lease is not None and lease.holder not in ("", self._identity)


_NAME_MAX = 253


def lease_name(prefix: str, name: str) -> str:
    """Of the Lease of `name`: cut where it would be too long. The policies of k8s/chart reckon in the same way."""
    room = _NAME_MAX - len(prefix)
    return prefix + (name if len(name) <= room else name[: room - 1] + "x")


class Heartbeats:
    """Which Leases are renewed."""

    def __init__(self, leases: Leases, prefix: str, on_change: Callable[[], None]) -> None:
        self._leases = leases
        self._prefix = prefix
        self._on_change = on_change
        self._seen: dict[str, tuple[Lease, float]] = {}
        self._alive: set[str] = set()
        self._renewed: set[str] = set()
        """Leases that were renewed before our eyes."""
        self._silent_since: dict[str, float] = {}
        self._begun = time.monotonic()

    def is_alive(self, name: str) -> bool:
        """Also of one whose Lease has not run out since we began to look."""
        return self._lease_of(name) in self._alive

    def _lease_of(self, name: str) -> str:
        return lease_name(self._prefix, name)

    def silent_s(self, name: str) -> float | None:
        """For how long it has given no sign of life; 0.0: it was seen to. None: that is not known yet."""
        lease = self._lease_of(name)
        if lease in self._alive:
            return 0.0 if lease in self._renewed else None
        return time.monotonic() - self._silent_since.get(lease, self._begun)

    async def tidy(self, known: Collection[str], silent_s: float) -> None:
        """Remove the Leases of all but `known` that have given no sign of life for so long."""
        kept = {self._lease_of(name) for name in known}
        for lease, since in list(self._silent_since.items()):
            if lease not in kept and time.monotonic() - since >= silent_s:
                await self._leases.delete(lease)

    async def look(self) -> None:
        """Raises Unavailable."""
        now = time.monotonic()
        found = {each.name: each for each in await self._leases.list() if each.name.startswith(self._prefix)}
        for name, lease in found.items():
            known = self._seen.get(name)
            if known is None or known[0].version != lease.version:
                self._seen[name] = (lease, now)
            if known is not None and known[0].version != lease.version:
                self._renewed.add(name)
        for gone in self._seen.keys() - found.keys():
            del self._seen[gone]
        self._renewed &= found.keys()
        alive = {
            name for name, (lease, since) in self._seen.items() if lease.holder and now - since <= lease.duration_s
        }
        changed = alive != self._alive
        for lost in self._alive - alive:
            log.warning("%s does not give a sign of life", lost)
        self._alive = alive
        silent = found.keys() - alive
        self._silent_since = {name: self._silent_since.get(name, now) for name in silent}
        if changed:
            self._on_change()

    async def look_again(self) -> None:
        """`look`; one that fails makes nobody silent. Raises what it raises."""
        try:
            await self.look()
        except Exception:
            # What is not known is left as it is: an API that is away is no node that is.
            self._seen = {name: (lease, time.monotonic()) for name, (lease, _) in self._seen.items()}
            raise


def _read(item: dict[str, Any]) -> Lease:
    spec = item.get("spec") or {}
    return Lease(
        name=str(item["metadata"]["name"]),
        holder=str(spec.get("holderIdentity") or ""),
        renewed=str(spec.get("renewTime") or ""),
        duration_s=int(spec.get("leaseDurationSeconds") or 0),
        version=str(item["metadata"]["resourceVersion"]),
    )


async def node_labels(connection: Connection, node: str) -> dict[str, str]:
    """Labels of a Kubernetes Node; none when there is no such Node, or it is not ours to read."""
    try:
        answer = await connection.request("GET", f"/api/v1/nodes/{node}", Asked("Node", node))
    except (NotFound, FailedPrecondition) as error:
        log.info("labels of Node %s: %s", node, error)
        return {}
    labels = answer["metadata"].get("labels") or {}
    return {str(key): str(value) for key, value in labels.items()}
