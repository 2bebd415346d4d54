"""What the target has of our volumes: read in full once per connection, kept up to date by our own actions.

Nothing here costs more as volumes grow, except `read_all`, which runs once per connection and at audits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from agent.model import Qos
from agent.spdk import bdev, nvmf
from agent.spdk.client import Rpc
from agent.volumes.rules.names import is_helper_name, is_snapshot_id, is_volume_id, volume_of_nqn
from agent.volumes.rules.plan import NOTHING, DesiredReplica, Listener, LvolSeen, ObservedReplica, SubsystemSeen

MIB = 1024 * 1024


class Observed:
    """Observed replicas by volume id. A volume that is not in it has nothing on the target.

    While calls for a volume are under way its state is unknown, and stays so if their outcome is never learned.
    """

    def __init__(self) -> None:
        self._replicas: dict[str, ObservedReplica] = {}
        self._unknown: set[str] = set()
        self.snapshots: dict[str, str] = {}
        """UUIDs of the snapshots' lvols by name, as of the reading."""
        self.parents: dict[str, str] = {}
        """The snapshot each lvol stands on, by name, as of the reading."""
        self.places: dict[str, str] = {}
        """The pool of each volume's and snapshot's lvol, by name, as of the reading."""
        self.helpers: list[str] = []
        """Aliases of helper lvols, as of the reading."""

    def get(self, volume: str) -> ObservedReplica:
        return self._replicas.get(volume, NOTHING)

    def is_known(self, volume: str) -> bool:
        return volume not in self._unknown

    def mark_unknown(self, volume: str) -> None:
        self._unknown.add(volume)

    def set(self, volume: str, replica: ObservedReplica) -> None:
        self._unknown.discard(volume)
        if replica == NOTHING:
            self._replicas.pop(volume, None)
        else:
            self._replicas[volume] = replica

    def volumes(self) -> list[str]:
        return list(self._replicas)


async def read_one(rpc: Rpc, desired: DesiredReplica) -> ObservedReplica:
    """What the target has of one volume now: two calls, sent together, whatever the number of volumes."""
    device, subsystem = await asyncio.gather(bdev.get(rpc, desired.bdev), nvmf.get_subsystem(rpc, desired.nqn))
    return ObservedReplica(
        lvol=LvolSeen(device.uuid, device.size_bytes, _qos(device)) if device else None,
        subsystem=_subsystem(subsystem) if subsystem else None,
    )


async def read_all(rpc: Rpc, pools: Iterable[str]) -> Observed:
    """Everything of ours on the target: all subsystems, and the bdevs of all lvols (for their size and limits).

    `bdev_lvol_get_lvols` does not tell sizes, `bdev_get_bdevs` does: both listings are one call each.
    """
    wanted = frozenset(pools)
    devices, subsystems = await asyncio.gather(bdev.list_all(rpc), nvmf.list_subsystems(rpc))
    observed = Observed()
    lvols: dict[str, LvolSeen] = {}
    for device in devices:
        for alias in device.aliases:
            pool, _, name = alias.partition("/")
            if pool not in wanted:
                continue
            if is_volume_id(name) or is_snapshot_id(name):
                observed.places[name] = pool
            if is_volume_id(name):
                lvols[name] = LvolSeen(device.uuid, device.size_bytes, _qos(device))
            elif is_snapshot_id(name):
                observed.snapshots[name] = device.uuid
            elif is_helper_name(name):
                observed.helpers.append(alias)
            if device.lvol and device.lvol.base_snapshot:
                observed.parents[name] = device.lvol.base_snapshot
    exports = {volume: _subsystem(each) for each in subsystems if (volume := volume_of_nqn(each.nqn))}
    for volume in lvols.keys() | exports.keys():
        observed.set(volume, ObservedReplica(lvols.get(volume), exports.get(volume)))
    return observed


def _subsystem(info: nvmf.SubsystemInfo) -> SubsystemSeen:
    return SubsystemSeen(
        hosts=frozenset(each.nqn for each in info.hosts),
        listeners=frozenset(Listener(each.traddr, int(each.trsvcid)) for each in info.listen_addresses),
        namespace=info.namespaces[0].uuid if info.namespaces else "",
    )


def _qos(device: bdev.BdevInfo) -> Qos:
    limits = device.assigned_rate_limits
    return Qos(
        rw_iops=limits.rw_ios_per_sec,
        rw_bytes_per_second=limits.rw_mbytes_per_sec * MIB,
        read_bytes_per_second=limits.r_mbytes_per_sec * MIB,
        write_bytes_per_second=limits.w_mbytes_per_sec * MIB,
    )
