"""A finding: what was looked at, how it is, what was found, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    PASS = "pass"  # noqa: S105 - not a password
    WARN = "warn"
    """Works, or works in part: `remedy` says what is gained."""
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    level: Level
    found: str
    remedy: str = ""


def passed(check: str, found: str) -> Finding:
    return Finding(check, Level.PASS, found)


def warned(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, Level.WARN, found, remedy)


def failed(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, Level.FAIL, found, remedy)


def worst(findings: Sequence[Finding]) -> Level:
    """The worst of all; `pass` of none."""
    order = list(Level)
    return max((each.level for each in findings), key=order.index, default=Level.PASS)
