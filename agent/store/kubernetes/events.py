"""Events of the Kubernetes API about our resources: what `kubectl describe` shows below an object.

They are told on a best effort, in the background: lost ones lose nothing that is not in a status as well. A resource is
cluster-scoped, and so are its events in namespace `default` (API conventions, "events").
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from agent.errors import NotFound, QuarryError
from agent.model import Resource
from agent.store.kubernetes.connection import Connection
from agent.store.kubernetes.kinds import API_VERSION
from agent.store.kubernetes.refusals import Asked

log = logging.getLogger(__name__)

_PATH = "/apis/events.k8s.io/v1/namespaces/default/events"
_WAITING_MAX = 256
_NOTE_MAX = 1000
"""Characters of a note, which may have 1,024 bytes at most."""

_BURST, _PER_S = 25, 1.0
"""How many are sent at once, and then a second: what the API servers' own clients keep to is less, per object."""

_SAME_S = 600.0
"""What is told again within this time is counted on the event that told it first."""
_KNOWN_MAX = 1024


@dataclass(slots=True)
class _Told:
    name: str
    at: float
    count: int = 1


class Recorder:
    """`uid_of` tells the uid of an object by kind and name; `instance` is which of the agents of `component` tells."""

    def __init__(
        self, connection: Connection, uid_of: Callable[[str, str], str], component: str, instance: str
    ) -> None:
        self._connection = connection
        self._uid_of = uid_of
        self._component = component
        self._instance = instance
        self._waiting: deque[tuple[Resource, str, str, bool]] = deque(maxlen=_WAITING_MAX)
        self._any = asyncio.Event()
        self._known: OrderedDict[tuple[str, str, str, str], _Told] = OrderedDict()
        self._allowance, self._as_of = float(_BURST), time.monotonic()

    def tell(self, resource: Resource, reason: str, message: str, is_warning: bool) -> None:
        """Have it told soon. With too much to tell the oldest is left out."""
        self._waiting.append((resource, reason, message, is_warning))
        self._any.set()

    async def run(self) -> None:
        """Tell, until cancelled."""
        while True:
            await self._any.wait()
            while self._waiting:
                await self._until_allowed()
                await self._send(*self._waiting.popleft())
            self._any.clear()

    async def _until_allowed(self) -> None:
        now = time.monotonic()
        self._allowance = min(_BURST, self._allowance + (now - self._as_of) * _PER_S)
        self._as_of = now
        if self._allowance < 1.0:
            await asyncio.sleep((1.0 - self._allowance) / _PER_S)
            self._allowance, self._as_of = 1.0, time.monotonic()
        self._allowance -= 1.0

    async def _send(self, resource: Resource, reason: str, message: str, is_warning: bool) -> None:
        kind, name = type(resource).__name__, resource.meta.name
        uid = self._uid_of(kind, name)
        if not uid:
            return  # it is gone
        key = (uid, reason, message, str(is_warning))
        told = self._known.pop(key, None)
        try:
            if told is None or time.monotonic() - told.at > _SAME_S or not await self._again(told):
                told = await self._first(kind, name, uid, reason, message, is_warning)
        except QuarryError as error:
            log.debug("the event %s of %s %s is not told: %s", reason, kind, name, error)
            return
        self._known[key] = told
        while len(self._known) > _KNOWN_MAX:
            self._known.popitem(last=False)

    async def _first(self, kind: str, name: str, uid: str, reason: str, message: str, is_warning: bool) -> _Told:
        event = f"{name[:200]}.{uuid.uuid4().hex[:16]}"
        body: dict[str, Any] = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": event, "namespace": "default"},
            "eventTime": _now(),
            "reportingController": self._component,
            "reportingInstance": self._instance[:128],
            "action": "Settle",
            "reason": reason[:128],
            "note": message[:_NOTE_MAX].encode()[:1024].decode(errors="ignore"),
            "type": "Warning" if is_warning else "Normal",
            "regarding": {"apiVersion": API_VERSION, "kind": kind, "name": name, "uid": uid},
        }
        await self._connection.request("POST", _PATH, Asked("Event", event), body=body)
        return _Told(event, time.monotonic())

    async def _again(self, told: _Told) -> bool:
        """Count it on the event that told it before; false when that is gone."""
        body = {"series": {"count": told.count + 1, "lastObservedTime": _now()}}
        content = "application/merge-patch+json"
        try:
            asked = Asked("Event", told.name)
            await self._connection.request("PATCH", f"{_PATH}/{told.name}", asked, body=body, content=content)
        except NotFound:
            return False
        told.count, told.at = told.count + 1, time.monotonic()
        return True


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
