"""The wire an agent trips over: at the n-th thing it does that lasts, it is killed. Shared memory, so that it can be
laid from outside while the agent runs."""

from __future__ import annotations

import mmap
import os
import signal
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import NoReturn


class Phase(IntEnum):
    """When to die: before the thing is done, while it goes on (programs only), after it and before anybody knows."""

    BEFORE = 0
    DURING = 1
    AFTER = 2


RUN = "run"
"""First word in the label of a program."""

_STATE = struct.Struct("=4i")


class Tripwire:
    """`armed`, `seen`, `fatal`, `phase`: four numbers in a file. What was passed is told beside it, a label a line."""

    def __init__(self, path: Path) -> None:
        self._labels = path.with_suffix(".labels")
        if not path.exists():
            path.write_bytes(bytes(_STATE.size))
            self._labels.touch()
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _STATE.size)
        self._lock = threading.Lock()

    # --- from outside ---

    def arm(self, fatal: int = 0, phase: Phase = Phase.BEFORE) -> None:
        """Count from now on; die at number `fatal`, the first being 1 (0: never)."""
        self._labels.write_bytes(b"")
        self._memory[:] = _STATE.pack(1, 0, fatal, phase)

    def disarm(self) -> None:
        self._memory[:] = _STATE.pack(0, 0, 0, 0)

    def passed(self) -> list[str]:
        """What was counted since `arm`."""
        return self._labels.read_text().splitlines()

    # --- in the agent ---

    def count(self, label: str) -> int:
        """The number of what is about to be done; 0 when nothing is counted."""
        with self._lock:
            armed, seen, fatal, phase = _STATE.unpack(self._memory[:])
            if not armed:
                return 0
            seen += 1
            self._memory[:] = _STATE.pack(armed, seen, fatal, phase)
            with self._labels.open("a") as file:
                file.write(f"{label}\n")
            return seen

    def is_fatal(self, number: int, phase: Phase) -> bool:
        armed, _, fatal, when = _STATE.unpack(self._memory[:])
        return bool(armed) and number == fatal != 0 and when == phase

    def trip(self, number: int, phase: Phase) -> None:
        """Die if `phase` of thing `number` is the moment."""
        if self.is_fatal(number, phase):
            die()

    @contextmanager
    def passing(self, *labels: str) -> Iterator[None]:
        """What is done in the block is all these things, at once."""
        numbers = [self.count(label) for label in labels]
        for number in numbers:
            self.trip(number, Phase.BEFORE)
        try:
            yield
        finally:
            for number in numbers:
                self.trip(number, Phase.AFTER)


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("alive")
