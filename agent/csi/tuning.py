"""How gRPC's core runs in our processes. To be called before gRPC is used for the first time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_CHOICE = "-event_engine_listener,-event_engine_client"


def tune() -> None:
    """The older listener and client hand calls over in one thread fewer.

    A fifth of an agent's CPU time per call, and of a caller's (measured with gRPC 1.85). The name of an experiment that
    a later gRPC no longer knows is ignored. What the environment says wins.
    """
    os.environ.setdefault("GRPC_EXPERIMENTS", _CHOICE)


@contextmanager
def modest_threads() -> Iterator[None]:
    """Threads started meanwhile, by this one or by each other, do not interrupt who is running when they wake.

    gRPC has threads that hand over events, six and more per call: each time they would take the CPU from the very
    thread they hand over to. As SCHED_BATCH (sched(7)) they wait until it has nothing to do, and hand over more at
    once: a seventh of an agent's CPU time per call on a busy CPU, a third of a caller's. Not for the thread that works
    itself: beside a process that never rests, each of its waits would take a time slice.
    """
    before, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    with suppress(OSError):  # a sandbox that forbids it: no harm, only slower
        if before == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        yield
    finally:
        if os.sched_getscheduler(0) != before:
            os.sched_setscheduler(0, before, parameters)
