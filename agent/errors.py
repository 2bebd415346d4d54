"""The errors of the agent, one tree.

QuarryError
├── InvalidArgument      the request is wrong and will stay wrong; names the field and the remedy
├── NotFound             the thing asked for does not exist
├── AlreadyExists        the name is taken by something different
├── FailedPrecondition   right request, wrong state; the caller has to change the state first
├── OutOfRange           a size or count outside what can ever be served
├── ResourceExhausted    no room here now; another disk or node may have some
├── Busy                 another operation on the same object is in flight; ask again
├── Conflict             the object changed since it was read (resource version)
├── Unavailable          something we depend on cannot be reached now; ask again
│   ├── TransportClosed  the JSON-RPC connection broke or spoke garbage
│   └── DiskAway         the disk of a volume is away; who may no longer reach the volume is shut out all the same
├── DeadlineExceeded     the answer did not come in time; the operation may still have happened
├── RpcError             the SPDK target answered with an error: method, code, message, params
└── CommandFailed        a program on the host failed: argv, exit code, stderr

Domain code raises these; only the outermost layers (csi, cli) translate them, once, to gRPC codes and exit codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class QuarryError(Exception):
    """Base of all errors raised on purpose. `str(error)` is a sentence for a person."""


class InvalidArgument(QuarryError):
    """The request is wrong: `field` names the offending part, `remedy` says what would be right."""

    def __init__(self, field: str, problem: str, remedy: str = "") -> None:
        self.field = field
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{field}: {problem}" + (f"; {remedy}" if remedy else ""))


class NotFound(QuarryError):
    """There is no `kind` called `name`."""

    def __init__(self, kind: str, name: str) -> None:
        self.kind = kind
        self.name = name
        super().__init__(f"{kind} {shorten(name)!r} does not exist")


class AlreadyExists(QuarryError):
    """A `kind` called `name` exists and differs from the one asked for (`difference`)."""

    def __init__(self, kind: str, name: str, difference: str = "") -> None:
        self.kind = kind
        self.name = name
        self.difference = difference
        super().__init__(f"{kind} {shorten(name)!r} already exists" + (f" {difference}" if difference else ""))


class FailedPrecondition(QuarryError):
    """The request is right but the state is not."""


class OutOfRange(QuarryError):
    """A size or count that can never be served."""


class ResourceExhausted(QuarryError):
    """No room now."""


class Busy(QuarryError):
    """Another operation on the same object is in flight."""


class Conflict(QuarryError):
    """The object was changed by somebody else since it was read."""

    def __init__(self, kind: str, name: str, version: int) -> None:
        self.kind = kind
        self.name = name
        self.version = version
        super().__init__(f"{kind} {name!r} changed since version {version} was read")


class Unavailable(QuarryError):
    """Something we depend on cannot be reached now."""


class TransportClosed(Unavailable):
    """The JSON-RPC connection is closed, was closed mid-call, or carried something that is not JSON-RPC."""


class DiskAway(Unavailable):
    """The disk of a volume is away. Hosts that may no longer reach the volume are cut, also once the disk is back."""


class DeadlineExceeded(QuarryError):
    """No answer in time. Whether the operation happened is unknown: read the state before deciding."""


class RpcError(QuarryError):
    """An SPDK target refused a call.

    `code` is the JSON-RPC error code as sent: a negative errno (-17, -19, ...) or a JSON-RPC one (-32602, ...).
    The same condition has different codes in different methods, so decide by reading the state back.
    """

    def __init__(self, method: str, code: int, message: str, params: Mapping[str, Any] | None = None) -> None:
        self.method = method
        self.code = code
        self.message = message
        self.params = dict(params or {})
        super().__init__(f"{method}: {message} (code {code})")


class CommandFailed(QuarryError):
    """A host program exited with a failure. `stderr` is cut to its last 2,000 characters."""

    def __init__(self, argv: Sequence[str], exit_code: int, stderr: str) -> None:
        self.argv = tuple(argv)
        self.exit_code = exit_code
        self.stderr = stderr[-2000:]
        super().__init__(f"{argv[0]} failed with exit code {exit_code}: {self.stderr.strip() or 'no message'}")


def shorten(text: str, limit: int = 80) -> str:
    """`text` for an error message: cut in the middle when longer than `limit` characters."""
    if len(text) <= limit:
        return text
    half = (limit - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def visible(text: str) -> str:
    """`text` for a terminal or a log: one line, of which every character shows.

    Line breaks, control characters, and what turns or hides text (bidirectional controls, zero-width characters)
    become escapes as in JSON or Python: names of volumes may have them, says CSI.
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()
