"""The records of this node's disks: changed by several parts of the agent and by the command line at the same time."""

from __future__ import annotations

from collections.abc import Callable

from agent.errors import Conflict, NotFound, Unavailable
from agent.model import Disk
from agent.store.interface import Store

ATTEMPTS = 50
"""Each lost race means that another one wrote."""


class DiskRecords:
    """The disks of `node` in the store."""

    def __init__(self, store: Store, node: str) -> None:
        self._store = store
        self.node = node

    async def get(self, name: str) -> Disk | None:
        return await self._store.get(Disk, name)

    async def list(self) -> list[Disk]:
        return [disk for disk in await self._store.list(Disk) if disk.status.node == self.node]

    async def create(self, disk: Disk) -> Disk:
        """Raises AlreadyExists."""
        return await self._store.create(disk)

    async def change(self, disk: Disk, change: Callable[[Disk], Disk]) -> Disk:
        """Apply `change` to the record as it is now. Nothing is written when nothing changes. Raises NotFound."""
        for _ in range(ATTEMPTS):
            wanted = change(disk)
            if wanted == disk:
                return disk
            try:
                return await self._store.update(wanted)
            except Conflict:
                found = await self._store.get(Disk, disk.meta.name)
                if found is None:
                    raise NotFound("disk", disk.meta.name) from None
                disk = found
        raise Unavailable(f"the record of disk {disk.meta.name} is changed by others all the time; repeat the call")

    async def forget(self, disk: Disk) -> None:
        """Remove the record, unless it changed meanwhile (Conflict)."""
        await self._store.delete(Disk, disk.meta.name, disk.meta.version)
