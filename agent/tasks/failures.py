"""What tasks in the background have failed at: counted for the process, as its log is one for the process."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass

from agent.errors import QuarryError

log = logging.getLogger(__name__)

TOLD_S = 90.0
"""A failure older than this is over: no task pauses for so long."""


@dataclass(slots=True)
class _Row:
    """Failures of one task without a success in between."""

    count: int
    message: str
    at: float


class Failures:
    """By the name of the task, which has to come from a bounded set of words."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """How often each has failed since the start."""
        self._rows: dict[str, _Row] = {}

    def failed(self, task: str, error: BaseException, remedy: str) -> None:
        """Count it and log it, a defect with its traceback. `remedy`: what happens now."""
        self.counts[task] += 1
        message = str(error) if isinstance(error, QuarryError) else f"unexpectedly: {error!r}"
        row = self._rows.get(task)
        said = row is not None and row.message == message
        self._rows[task] = _Row(row.count + 1 if row else 1, message, time.monotonic())
        if said:
            log.debug("%s failed again: %s; %s", task, message, remedy)
        elif isinstance(error, QuarryError):
            log.warning("%s failed: %s; %s", task, message, remedy)
        else:
            log.error("%s failed %s; %s", task, message, remedy, exc_info=error)

    def succeeded(self, task: str) -> None:
        if (row := self._rows.pop(task, None)) is not None:
            log.info("%s works again after %d failures", task, row.count)

    def failing(self) -> dict[str, str]:
        """Those that failed twice or more in a row, with why: once is what another try is for."""
        now = time.monotonic()
        return {task: row.message for task, row in self._rows.items() if row.count > 1 and now - row.at < TOLD_S}


FAILURES = Failures()
"""Of this process."""
