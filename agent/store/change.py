"""One change of a resource, as logs and caches keep it."""

from __future__ import annotations

from dataclasses import dataclass

from agent.model import Resource
from agent.store.interface import EventType


@dataclass(frozen=True, slots=True)
class Change:
    """One write: the resource after it, or the last state of a deleted one; both carry the version of the write."""

    version: int
    type: EventType
    resource: Resource
    document: bytes

    @property
    def kind(self) -> str:
        return type(self.resource).__name__
