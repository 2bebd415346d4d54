"""What the endpoint of a role looks at: the parts of the running agent, each of which may be absent in some role."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agent.diag.readings import Reading
from agent.model import Disk, Snapshot, StorageNode, TargetState, Volume
from agent.pools.ledger import Ledger
from agent.store.interface import Store
from agent.tally import Tally
from agent.tasks.failures import FAILURES
from agent.volumes.rules.conditions import VolumeCondition
from agent.volumes.service.lineage import Lineage

if TYPE_CHECKING:
    from agent.spdk.client import Client
    from agent.volumes.target.bringup import TargetKeeper

Conditions = Callable[[Sequence[Volume]], Awaitable[Sequence[VolumeCondition]]]
"""How each of some volumes is: `VolumeService.conditions`."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why the agent is not ready: which part, and what is wrong with it."""

    part: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Parts:
    """`node`: the disks and volumes of this one only are counted in metrics; empty: all there are."""

    role: str
    store: Store
    store_writes: Counter[tuple[str, str]] = field(default_factory=Counter)
    store_requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Requests to the Kubernetes API, by kind and verb."""
    node: str = ""
    calls: Tally = field(default_factory=Tally)
    """CSI calls answered, by method and code."""
    is_serving: Callable[[], bool] = lambda: True
    """Whether CSI is served."""
    rpc: Client | None = None
    keeper: TargetKeeper | None = None
    read_io: Callable[[Sequence[Volume]], Awaitable[Reading]] | None = None
    """The I/O counters of volumes, asked of the target."""
    activity: Callable[[], Awaitable[Mapping[str, Any]]] | None = None
    """How busy the target is; takes a second. Raises QuarryError."""
    ledger: Ledger | None = None
    lineage: Lineage | None = None
    conditions: Conditions | None = None
    dead_nodes: Callable[[], Awaitable[Mapping[str, bool]]] | None = None
    """Of each node whether it is dead; nothing unless this process judges that (a controller that leads)."""
    more_reasons: Callable[[], Sequence[Reason]] = tuple
    """Further reasons of the role not to be ready."""

    def is_here(self, resource: Disk | Volume | Snapshot) -> bool:
        """Whether it belongs to what this agent counts."""
        if not self.node:
            return True
        if isinstance(resource, Disk):
            return resource.status.node == self.node
        if isinstance(resource, Snapshot):
            return resource.spec.node == self.node
        return any(replica.node == self.node for replica in resource.spec.placement)

    async def reasons(self) -> list[Reason]:
        """Why the agent is not ready; none when it is. Raises Unavailable when the store does not answer."""
        found = list[Reason]()
        await self.store.get(StorageNode, self.node or "-")
        if self.keeper is not None and self.keeper.state is not TargetState.READY:
            why = f": {self.keeper.trouble}" if self.keeper.trouble else ""
            found.append(Reason("target", f"the target is {self.keeper.state}{why}"))
        if not self.is_serving():
            found.append(Reason("csi", "CSI is not served (yet)"))
        found += [Reason(task, f"it fails again and again: {why}") for task, why in FAILURES.failing().items()]
        return [*found, *self.more_reasons()]
