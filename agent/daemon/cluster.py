"""What the roles of a cluster have in common: their Leases, and where those are."""

from __future__ import annotations

import os
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
