"""The one table from domain errors to gRPC status codes (CSI specification v1.12.0, "Error Scheme").

What callers make of a code: CANCELED, DEADLINE_EXCEEDED, UNAVAILABLE, RESOURCE_EXHAUSTED and ABORTED mean "may still be
running, repeat the call"; every other code is final, "nothing happened and nothing is left behind".
"""

from __future__ import annotations

import string
from urllib.parse import quote

import grpc

from agent import errors

_MESSAGE_CHARACTERS_MAX = 1500
_MESSAGE_BYTES_MAX = 6000
"""A status message travels percent-encoded in HTTP/2 trailers, and gRPC drops trailers of more than 8 KiB at random."""


class InvalidToken(errors.QuarryError):
    """A ListVolumes token that this server did not hand out: the caller starts again without one."""


_CODES: dict[type[errors.QuarryError], grpc.StatusCode] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Busy: grpc.StatusCode.ABORTED,
    errors.Conflict: grpc.StatusCode.ABORTED,
    InvalidToken: grpc.StatusCode.ABORTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.RpcError: grpc.StatusCode.INTERNAL,
    errors.CommandFailed: grpc.StatusCode.INTERNAL,
}


def code_of(error: errors.QuarryError) -> grpc.StatusCode:
    """The code of the nearest class of `error` in the table; INTERNAL when none is listed."""
    for kind in type(error).__mro__:
        if code := _CODES.get(kind):
            return code
    return grpc.StatusCode.INTERNAL


def message_of(error: errors.QuarryError) -> str:
    """What the caller reads: the error's sentence, cut to what a status can carry."""
    limit = _MESSAGE_CHARACTERS_MAX
    while True:
        message = errors.shorten(str(error), limit)
        if len(quote(message, safe=string.printable)) <= _MESSAGE_BYTES_MAX:
            return message
        limit = limit * 2 // 3
