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
        errors.DiskAway,
        errors.Unavailable,
        errors.DeadlineExceeded,
    )
}
"""Errors that are a sentence and nothing else. Others become the nearest of their bases, or one of the target."""


def is_waited_for(error: QuarryError) -> bool:
    """Whether the node is likely to get over it soon. It tries again all the same: a disk may come back in days."""
    transient = (errors.Unavailable, errors.Busy, errors.DeadlineExceeded)
    return isinstance(error, transient) and not isinstance(error, errors.DiskAway)


def record(error: QuarryError) -> Failure:
    """What is written down of `error`."""
    code = next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _KINDS), RpcError.__name__)
    return Failure(code, errors.shorten(str(error), _MESSAGE_MAX))


def raised(failure: Failure) -> QuarryError:
    """The error that was written down."""
    kind = _KINDS.get(failure.code)
    return kind(failure.message) if kind is not None else RpcError("settle", 0, failure.message)
