"""Errors as they are carried in a status, from the node that met them to the caller who waits for it."""

from __future__ import annotations

from agent import errors
from agent.errors import QuarryError, RpcError
from agent.model import Failure

_MESSAGE_MAX = 1000

_KINDS: dict[str, type[QuarryError]] = {
    kind.__name__: kind
    for kind in (
        errors.FailedPrecondition,
        errors.OutOfRange,
        errors.ResourceExhausted,
        errors.Busy,
        errors.Unavailable,
        errors.DeadlineExceeded,
    )
}
"""Errors that are a sentence and nothing else. Others become the nearest of their bases, or one of the target."""

TRANSIENT = (errors.Unavailable, errors.Busy, errors.DeadlineExceeded)
"""What the node tries again by itself: whoever waits goes on waiting."""


def record(error: QuarryError, *, closed: bool = False) -> Failure:
    """What is written down of `error`."""
    code = next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _KINDS), RpcError.__name__)
    return Failure(code, errors.shorten(str(error), _MESSAGE_MAX), closed)


def raised(failure: Failure) -> QuarryError:
    """The error that was written down."""
    kind = _KINDS.get(failure.code)
    return kind(failure.message) if kind is not None else RpcError("settle", 0, failure.message)
