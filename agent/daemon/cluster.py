"""What the roles of a cluster have in common: their Leases, and the events they tell."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path

from agent.config.settings import Settings
from agent.store.kubernetes.events import Recorder
from agent.store.kubernetes.store import KubernetesStore
from agent.tasks.background import Background
from agent.volumes.service.telling import Tell

LEADER = "quarry-controller"
HEARTBEAT = "quarry-node-"

LEASE_S, RENEW_S = 10, 5.0
HEARTBEAT_S = 15

_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def events_of(store: KubernetesStore, role: str, instance: str, closers: AsyncExitStack) -> Tell:
    """What makes news of an object an event of it, until `closers` are closed."""
    recorder = Recorder(store.connection, store.uid_of, f"quarry-{role}", instance)
    telling = Background()
    telling.keep("events", recorder.run)
    closers.push_async_callback(telling.stop)
    return lambda of, news: recorder.tell(of, news.reason, news.message, news.is_warning)


def lease_namespace(settings: Settings) -> str:
    """Where the Leases are: as set, else the Pod's namespace, else quarry-system."""
    if settings.lease_namespace:
        return settings.lease_namespace
    if os.environ.get("KUBERNETES_SERVICE_HOST") and _POD_NAMESPACE.exists():
        return _POD_NAMESPACE.read_text().strip()
    return "quarry-system"
