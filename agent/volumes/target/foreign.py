"""What a target has that no record asks for: exports, which hold nothing, and lvols, which may be somebody's data."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from agent.model import Volume
from agent.spdk import nvmf
from agent.spdk.client import Rpc
from agent.volumes.rules.names import volume_nqn
from agent.volumes.target.observed import Observed

log = logging.getLogger(__name__)


async def drop_foreign_exports(rpc: Rpc, observed: Observed, volumes: Sequence[Volume]) -> None:
    """Remove subsystems with our prefix that no volume asks for: they hold no data."""
    known = {each.meta.name for each in volumes}
    for name in observed.volumes():
        if name not in known and observed.get(name).subsystem is not None:
            log.warning("removing subsystem %s: no volume asks for it", volume_nqn(name))
            await nvmf.ensure_no_subsystem(rpc, volume_nqn(name))


def report_orphans(observed: Observed, volumes: Sequence[Volume]) -> None:
    """Name lvols in our pools that the store does not know. They are never deleted."""
    known = {each.meta.name for each in volumes}
    orphans = sorted(name for name in observed.volumes() if name not in known and observed.get(name).lvol)
    if orphans:
        log.error("%d lvols belong to no known volume and are left alone: %s", len(orphans), ", ".join(orphans[:20]))
