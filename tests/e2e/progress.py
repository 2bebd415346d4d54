"""What is being done, with the time since the start; and waiting for something with a deadline."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

BEGAN = "QUARRY_E2E_BEGAN"
"""When the run began, for what runs in the machine, which has the same clock."""

_LOADED = time.monotonic()


def began() -> float:
    return float(os.environ.get(BEGAN, _LOADED))


def say(what: str) -> None:
    print(f"{time.monotonic() - began():6.1f} s  {what}", flush=True)


def until(done: Callable[[], object], says: str | Callable[[], str], timeout_s: float = 60.0) -> None:
    """Returns when `done` is true. Raises TimeoutError with `says`. An API that does not answer is waited for."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if done():
                return
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(says if isinstance(says, str) else says())
        time.sleep(0.1)
