"""Which Kubernetes API there is here for tests: a real one, else an emulator."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tests.emulator.emulator import emulator

from . import control_plane
from .plane import Plane

EMULATED = os.environ.get("QUARRY_KUBERNETES") == "emulator" or bool(control_plane.missing())


@contextmanager
def any_plane() -> Iterator[Plane]:
    """One that runs until the end of the block; a skip where there is neither. For the main thread."""
    with emulator() if EMULATED else control_plane.control_plane() as plane:
        yield plane
