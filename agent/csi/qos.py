"""The QoS parameters: the limits a volume is created with, and the only ones that can be changed afterwards.

SPDK would round limits up (QOS_IOPS_STEP, QOS_BYTES_STEP). What it would round is refused instead: a limit that is
shown is the one that holds.
"""

from __future__ import annotations

from collections.abc import Mapping

from agent.errors import InvalidArgument, shorten
from agent.model import QOS_BYTES_MAX, QOS_BYTES_STEP, QOS_IOPS_MAX, QOS_IOPS_STEP
from agent.sizes import GIB, MIB, parse_quantity
from agent.volumes.rules.requests import QosChange

_FIELDS = {
    "iops": "rw_iops",
    "bandwidth": "rw_bytes_per_second",
    "readBandwidth": "read_bytes_per_second",
    "writeBandwidth": "write_bytes_per_second",
}
KEYS = tuple(_FIELDS)

NO_CHANGE = QosChange()

NO_SUCH_LIMITS = frozenset({"readIops", "writeIops"})
"""What others offer and SPDK does not: it counts reads and writes together."""


def change(parameters: Mapping[str, str], field: str = "parameters") -> QosChange:
    """The limits among `parameters`; other keys are left out. Raises InvalidArgument naming the parameter."""
    given = [key for key in KEYS if key in parameters]
    if not given:
        return NO_CHANGE
    return QosChange(**{_FIELDS[key]: _limit(key, parameters[key], f"{field}[{key!r}]") for key in given})


def mutable(parameters: Mapping[str, str]) -> QosChange:
    """`mutable_parameters` of a request: limits and nothing else. Raises InvalidArgument naming the parameter."""
    for key in sorted(parameters):
        if key not in _FIELDS:
            raise unknown("mutable_parameters", key, KEYS)
    return change(parameters, "mutable_parameters")


def unknown(field: str, key: str, accepted: tuple[str, ...]) -> InvalidArgument:
    """The refusal of a parameter that does not exist."""
    known = f"accepted: {', '.join(accepted)}"
    if key in NO_SUCH_LIMITS:
        known = f"SPDK limits reads and writes together: use iops; {known}"
    return InvalidArgument(f"{field}[{shorten(key)!r}]", "unknown parameter", known)


def _limit(key: str, value: str, field: str) -> int:
    return _iops(value, field) if key == "iops" else _bandwidth(value, field)


def _iops(value: str, field: str) -> int:
    number = int(value) if value.isascii() and value.isdecimal() and len(value) <= 30 else -1
    if not 0 <= number <= QOS_IOPS_MAX:
        raise InvalidArgument(
            field, f"{shorten(value)!r} is not a limit", f"use 1000 to {QOS_IOPS_MAX}, or 0 for no limit"
        )
    if number % QOS_IOPS_STEP:
        below, above = _neighbours(number, QOS_IOPS_STEP)
        raise InvalidArgument(field, f"{number} is no whole thousand", _instead(below, f"{above}"))
    return number


def _bandwidth(value: str, field: str) -> int:
    try:
        number = parse_quantity(value)
    except InvalidArgument as error:
        raise InvalidArgument(field, error.problem, f"{error.remedy} bytes a second, or 0 for no limit") from None
    if number > QOS_BYTES_MAX:
        raise InvalidArgument(field, f"{shorten(value)!r} is more than {QOS_BYTES_MAX // GIB}Gi", "use 0 for no limit")
    if number % QOS_BYTES_STEP:
        below, above = (each // MIB for each in _neighbours(number, QOS_BYTES_STEP))
        problem = f"{shorten(value)!r} is {number} bytes a second, no whole number of MiB"
        raise InvalidArgument(field, problem, _instead(below and f"{below}Mi", f"{above}Mi"))
    return number


def _neighbours(number: int, step: int) -> tuple[int, int]:
    return number // step * step, (number // step + 1) * step


def _instead(below: int | str, above: str) -> str:
    return f"use {below} or {above}" if below else f"use {above}, the least there is, or 0 for no limit"
