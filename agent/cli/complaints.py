"""Exceptions of any kind as one sentence for a person and an exit code."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from agent.cli.exit_codes import ExitCode, exit_code
from agent.errors import InvalidArgument, QuarryError

_NO_SPACE = frozenset((errno.ENOSPC, errno.EDQUOT))
_DEFECTS = frozenset((errno.EBADF, errno.EFAULT, errno.EINVAL, errno.ENOTSOCK, errno.ENOSYS, errno.ENOTTY))
"""What the system says when it is we who asked for nonsense; every other of its errors is the machine's."""


def complaint(error: BaseException) -> tuple[str, ExitCode]:
    """The sentence and the code. Of several errors at once the first counts that is no defect, all are told."""
    told = dict(map(_of_one, _leaves(error)))
    by_worth = sorted(told.items(), key=lambda each: each[1] is ExitCode.INTERNAL)
    if not by_worth:
        return _of_one(error)
    return "; ".join(sentence for sentence, _ in by_worth), by_worth[0][1]


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """What a group of concurrent work failed of, or the error itself."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


def _of_one(error: BaseException) -> tuple[str, ExitCode]:
    if isinstance(error, QuarryError):
        return _sentence(error), exit_code(error)
    if isinstance(error, OSError) and error.strerror and error.errno not in _DEFECTS:
        return _of_system(error), ExitCode.NO_SPACE if error.errno in _NO_SPACE else ExitCode.PRECONDITION
    text = f"defect: {type(error).__name__}: {error} (repeat with --debug for the traceback, and please report it)"
    return text, ExitCode.INTERNAL


def _of_system(error: OSError) -> str:
    names = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    return f"{names}: {error.strerror}" if names else f"{error.strerror}"


def _sentence(error: QuarryError) -> str:
    """One line. InvalidArgument already says "field: problem; remedy"; settings and flags share their names."""
    if isinstance(error, InvalidArgument):
        return " ".join(str(error).split())
    cause = error.__cause__
    text = str(error) or "it failed, and no reason is known"
    if isinstance(cause, OSError) and cause.strerror and cause.strerror not in text:
        text += f" ({cause.strerror})"
    return " ".join(text.split())
