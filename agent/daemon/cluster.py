"""What the roles of a cluster have in common: the namespace of their Leases, and running until told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from agent.config import Settings

LEADER = "quarry-controller"
HEARTBEAT = "quarry-node-"

LEASE_S, RENEW_S = 10, 5.0
HEARTBEAT_S = 15

_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def lease_namespace(settings: Settings) -> str:
    """Where the Leases are: as set, else the Pod's namespace, else quarry-system."""
    if settings.lease_namespace:
        return settings.lease_namespace
    if os.environ.get("KUBERNETES_SERVICE_HOST") and _POD_NAMESPACE.exists():
        return _POD_NAMESPACE.read_text().strip()
    return "quarry-system"


def stop_event() -> asyncio.Event:
    """Set at SIGTERM and SIGINT."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stopping.set)
    return stopping


async def either(stopping: asyncio.Event, work: asyncio.Task[None]) -> None:
    """Returns when told to stop; raises what ends `work`."""
    stop = asyncio.create_task(stopping.wait(), name="stop")
    done, _ = await asyncio.wait({stop, work}, return_when=asyncio.FIRST_COMPLETED)
    for task in (stop, work):
        if task not in done:
            task.cancel()
    await asyncio.gather(stop, work, return_exceptions=True)
    if work in done:
        work.result()
