"""A command as the controller gets it and the answer it gives; refusals are exceptions that carry the status."""

from __future__ import annotations

from dataclasses import dataclass

from agent.nvmf import status as statuses
from agent.nvmf.command import Command
from agent.nvmf.status import Status


@dataclass(frozen=True, slots=True)
class Request:
    """`data` came from the host; `length` is how much the host gave or takes (its SGL), in bytes."""

    command: Command
    data: bytes | bytearray = b""
    length: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """Successful answer: `result` is the command-specific value, `data` goes to the host, filled up with zeroes."""

    result: int = 0
    data: bytes = b""


class Refusal(Exception):
    """The command completes with an error status. `dnr`: the host must not repeat it."""

    def __init__(self, status: Status, *, dnr: bool = False, result: int = 0) -> None:
        self.status = status
        self.dnr = dnr
        self.result = result
        super().__init__(statuses.describe(status))
