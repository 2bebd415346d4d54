"""Status of a completed command: status code type and status code (NVM Express Base 2.0, section 3.3.3.2.1)."""

from __future__ import annotations

from enum import IntEnum

DO_NOT_RETRY = 1 << 15
"""The DNR bit of the status field of a completion (with the phase tag at bit 0)."""


class Status(IntEnum):
    """`code type << 8 | code`."""

    SUCCESS = 0x000
    INVALID_OPCODE = 0x001
    INVALID_FIELD = 0x002
    INTERNAL_ERROR = 0x006
    ABORTED_BY_REQUEST = 0x007
    INVALID_NAMESPACE = 0x00B
    COMMAND_SEQUENCE_ERROR = 0x00C
    DATA_SGL_LENGTH_INVALID = 0x00F
    KEEP_ALIVE_INVALID = 0x01A
    WRITE_PROTECTED = 0x020
    TRANSIENT_TRANSPORT_ERROR = 0x022
    LBA_OUT_OF_RANGE = 0x080
    CAPACITY_EXCEEDED = 0x081
    INVALID_QUEUE_IDENTIFIER = 0x101
    ASYNC_EVENT_LIMIT_EXCEEDED = 0x105
    INVALID_LOG_PAGE = 0x109
    FEATURE_NOT_SAVEABLE = 0x10D
    FEATURE_NOT_CHANGEABLE = 0x10E
    CONNECT_INCOMPATIBLE_FORMAT = 0x180
    CONNECT_INVALID_PARAMETERS = 0x182
    CONNECT_INVALID_HOST = 0x184
    UNRECOVERED_READ_ERROR = 0x281
    COMPARE_FAILURE = 0x285
    ANA_INACCESSIBLE = 0x302


PATH_RELATED = 3
"""Status code type of errors that belong to the path and not to the namespace: the host holds the I/O back."""


def code_type(code: int) -> int:
    return code >> 8


def describe(code: int) -> str:
    """A status for a person, e.g. "connect invalid host (1/84h)"."""
    try:
        name = Status(code).name.lower().replace("_", " ")
    except ValueError:
        name = "status"
    return f"{name} ({code >> 8}/{code & 0xFF:02x}h)"


def to_field(code: int, dnr: bool = False) -> int:
    """The 16-bit status field of a completion queue entry."""
    return (code & 0x7FF) << 1 | (DO_NOT_RETRY if dnr else 0)


def from_field(field: int) -> tuple[int, bool]:
    """(status, do not retry) of the status field."""
    return (field >> 1) & 0x7FF, bool(field & DO_NOT_RETRY)
