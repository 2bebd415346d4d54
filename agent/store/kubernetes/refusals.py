"""What the API refuses, as the agent's errors: decided by HTTP status and the reason in the Status object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from agent.errors import (
    AlreadyExists,
    Conflict,
    InvalidArgument,
    NotFound,
    QuarryError,
    Unavailable,
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request is about, for the error it may end in."""

    kind: str
    name: str = ""
    version: int = 0


class Expired(Unavailable):
    """The version asked from is no longer kept (410 Gone): list again."""


def refusal(status: int, text: bytes, asked: Asked) -> QuarryError:
    """The error for an answer of 300 and more."""
    told = _status(text)
    message = str(told.get("message") or text[:200].decode(errors="replace"))
    if status == 409:
        if told.get("reason") == "AlreadyExists":
            return AlreadyExists(asked.kind, asked.name)
        return Conflict(asked.kind, asked.name, asked.version)
    if status == 404:
        return NotFound(asked.kind, asked.name)
    if status in (400, 413, 422):
        return InvalidArgument(_field(told, asked), message)
    if status == 410:
        return Expired(message)
    if status == 403:
        # Not for good: an API server that has just started knows no roles for a moment.
        return Unavailable(f"the cluster does not allow it, see the roles in k8s/: {message}")
    if status == 401:
        return Unavailable(f"the cluster does not accept our credentials: {message}")
    return Unavailable(f"the Kubernetes API answered {status}: {message}")


def is_for_later(status: int, headers: Mapping[str, str], method: str) -> bool:
    """Whether it may be sent again: not carried out (throttled, not ready), or a read from a server in need."""
    if status == 429 or (status == 503 and "Retry-After" in headers):
        return True
    return method == "GET" and status in (500, 502, 503, 504)


def _status(text: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.MsgspecError:
        return {}


def _field(told: Mapping[str, Any], asked: Asked) -> str:
    causes = (told.get("details") or {}).get("causes") or [{}]
    return str(causes[0].get("field") or f"{asked.kind} {asked.name!r}")
