"""The lock that one process holds on a folder as long as it lives.

On the folder itself: a lock file in it can be deleted by hand, and then a second process would get in.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

LOOK_S = 0.2
"""Whoever asks `is_held` has the lock for a moment: an owner-to-be tries for so long."""
_PAUSE_S = 0.02


def hold(path: Path) -> int | None:
    """Take the lock of the folder `path`; it lasts until the descriptor is closed. None: another process has it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline = time.monotonic() + LOOK_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                return None
            time.sleep(_PAUSE_S)
        else:
            return descriptor


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of `path`. A folder that is not there, or not ours to read, is not held."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
