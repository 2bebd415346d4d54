"""Exit codes of the `quarry` command: part of its interface, scripts decide by them."""

from __future__ import annotations

from enum import IntEnum

from agent import errors


class ExitCode(IntEnum):
    OK = 0
    INTERNAL = 1
    """A defect: the message says how to see the traceback."""
    FAILED_CHECK = 1
    """A check of `quarry doctor` failed: what scripts and init containers expect of one."""
    USAGE = 2
    NOT_FOUND = 3
    UNAVAILABLE = 4
    ALREADY_EXISTS = 5
    PRECONDITION = 6
    NO_SPACE = 7
    BUSY = 8
    TIMEOUT = 9
    TARGET_ERROR = 10
    """The SPDK target refused a call."""
    HOST_COMMAND = 11
    """A program on this machine (mount, mkfs, nvme, ...) failed."""
    DEMO_FAILED = 20
    """A step of `quarry demo` failed; the message names it."""
    INTERRUPTED = 130
    """Ctrl-C, as shells count it (128 + SIGINT)."""
    TERMINATED = 143
    """SIGTERM where a result was expected (128 + SIGTERM)."""


_CODES: dict[type[errors.QuarryError], ExitCode] = {
    errors.QuarryError: ExitCode.INTERNAL,
    errors.InvalidArgument: ExitCode.USAGE,
    errors.OutOfRange: ExitCode.USAGE,
    errors.NotFound: ExitCode.NOT_FOUND,
    errors.AlreadyExists: ExitCode.ALREADY_EXISTS,
    errors.FailedPrecondition: ExitCode.PRECONDITION,
    errors.ResourceExhausted: ExitCode.NO_SPACE,
    errors.Busy: ExitCode.BUSY,
    errors.Conflict: ExitCode.BUSY,
    errors.Unavailable: ExitCode.UNAVAILABLE,
    errors.DeadlineExceeded: ExitCode.TIMEOUT,
    errors.RpcError: ExitCode.TARGET_ERROR,
    errors.CommandFailed: ExitCode.HOST_COMMAND,
}


def exit_code(error: errors.QuarryError) -> ExitCode:
    """The code for `error`: that of its nearest class in the table."""
    return next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)
