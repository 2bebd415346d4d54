"""Groups of snapshots in a cluster: refused, since nothing holds back writers on several nodes at one point in time."""

from __future__ import annotations

from collections.abc import Sequence

from agent.errors import FailedPrecondition, NotFound
from agent.volumes.groups import Members


class NoGroups:
    """Implements what the CSI service asks of groups."""

    async def create(self, name: str, volumes: Sequence[str]) -> Members:
        """Raises FailedPrecondition."""
        raise FailedPrecondition(
            "snapshots of several volumes at one point in time are not taken in a cluster yet: take one of each volume"
        )

    async def delete(self, group: str, snapshots: Sequence[str]) -> None:
        """There is none, which is fine."""

    async def get(self, group: str, snapshots: Sequence[str]) -> Members:
        """Raises NotFound."""
        raise NotFound("group snapshot", group)
