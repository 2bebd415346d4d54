"""Calls about the NVMe-oF side of the target: transports, subsystems, namespaces, hosts, listeners, ANA."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import msgspec

from agent.errors import RpcError
from agent.spdk.answers import given, read
from agent.spdk.client import Rpc

TRTYPE = "TCP"
DATASET_MANAGEMENT = "nvmdsmsv"
"""The optional command by which a host discards blocks, as `create_transport` names it."""
DISCOVERY_NQN = "nqn.2014-08.org.nvmexpress.discovery"
"""The subsystem every target has; not ours to touch."""


class AnaState(StrEnum):
    """What a listener tells hosts about its paths (NVM Express Base Specification 2.0, section 8.1)."""

    OPTIMIZED = "optimized"
    NON_OPTIMIZED = "non_optimized"
    INACCESSIBLE = "inaccessible"


class TransportInfo(msgspec.Struct, frozen=True):
    trtype: str
    max_queue_depth: int
    max_io_qpairs_per_ctrlr: int
    in_capsule_data_size: int
    max_io_size: int


class Address(msgspec.Struct, frozen=True):
    """A listener's or host's transport address. `trsvcid` is the TCP port as text."""

    trtype: str
    traddr: str
    trsvcid: str = ""
    adrfam: str = ""


class HostInfo(msgspec.Struct, frozen=True):
    nqn: str


class NamespaceInfo(msgspec.Struct, frozen=True):
    """A namespace of a subsystem. `bdev_name` is the bdev's own name: for an lvol its UUID, not its alias."""

    nsid: int
    bdev_name: str = ""
    uuid: str = ""
    nguid: str = ""
    anagrpid: int = 0


class SubsystemInfo(msgspec.Struct, frozen=True):
    """nvmf_get_subsystems. `subtype` is "NVMe" or "Discovery"."""

    nqn: str
    subtype: str
    allow_any_host: bool
    listen_addresses: tuple[Address, ...] = ()
    hosts: tuple[HostInfo, ...] = ()
    namespaces: tuple[NamespaceInfo, ...] = ()
    serial_number: str = ""
    model_number: str = ""
    max_namespaces: int = 0

    @property
    def host_nqns(self) -> tuple[str, ...]:
        return tuple(host.nqn for host in self.hosts)


class _Configured(msgspec.Struct, frozen=True):
    """One call of a saved configuration."""

    method: str
    params: dict[str, Any] = {}


class AnaGroup(msgspec.Struct, frozen=True):
    ana_group: int
    ana_state: AnaState


class ListenerInfo(msgspec.Struct, frozen=True):
    """nvmf_subsystem_get_listeners. `ana_states` is empty unless the subsystem reports ANA."""

    address: Address
    ana_states: tuple[AnaGroup, ...] = ()


class ControllerInfo(msgspec.Struct, frozen=True):
    """A connected host (nvmf_subsystem_get_controllers)."""

    cntlid: int
    hostnqn: str
    hostid: str = ""
    num_io_qpairs: int = 0


class QpairInfo(msgspec.Struct, frozen=True):
    """A connection of a host (nvmf_subsystem_get_qpairs); qid 0 is its admin queue."""

    cntlid: int
    qid: int
    state: str
    hostnqn: str = ""
    listen_address: Address | None = None
    peer_address: Address | None = None


# --- transports ---


class PollGroup(msgspec.Struct, frozen=True):
    current_io_qpairs: int = 0
    completed_nvme_io: int = 0


class Stats(msgspec.Struct, frozen=True):
    """nvmf_get_stats: one group for each CPU of the target."""

    poll_groups: tuple[PollGroup, ...] = ()

    @property
    def io_queues(self) -> int:
        """Queues for I/O that hosts have open."""
        return sum(each.current_io_qpairs for each in self.poll_groups)

    @property
    def completed(self) -> int:
        """Commands of hosts that were done since the start."""
        return sum(each.completed_nvme_io for each in self.poll_groups)


async def stats(rpc: Rpc) -> Stats:
    """What hosts do (nvmf_get_stats)."""
    return read("nvmf_get_stats", await rpc.call("nvmf_get_stats"), Stats)


async def create_transport(
    rpc: Rpc,
    *,
    max_queue_depth: int | None = None,
    max_io_size: int | None = None,
    in_capsule_data_size: int | None = None,
    masked_oncs: Sequence[str] | None = None,
) -> None:
    """Make the TCP transport; None takes the target's default. -32603 when it exists.

    `masked_oncs` names optional commands that no host is offered, and that are refused when one is sent all the same:
    "nvmcmps", "nvmdsmsv", "nvmwzsv", "reservs", "nvmcpys" (the bits of ONCS in Identify Controller).
    """
    params = given(
        trtype=TRTYPE,
        max_queue_depth=max_queue_depth,
        max_io_size=max_io_size,
        in_capsule_data_size=in_capsule_data_size,
        masked_oncs=masked_oncs,
    )
    await rpc.call("nvmf_create_transport", params)


async def get_transport(rpc: Rpc, trtype: str = TRTYPE) -> TransportInfo | None:
    """The transport, None when it has not been created (-19)."""
    try:
        result = await rpc.call("nvmf_get_transports", {"trtype": trtype})
    except RpcError as error:
        if error.code == -errno.ENODEV:
            return None
        raise
    found = read("nvmf_get_transports", result, list[TransportInfo])
    return found[0] if found else None


# --- subsystems ---


async def create_subsystem(
    rpc: Rpc,
    nqn: str,
    serial: str,
    model: str,
    *,
    ana_reporting: bool = True,
    max_namespaces: int = 1,
    dmrsl: int | None = None,
) -> None:
    """Make a closed subsystem: no host may connect before `add_host`. -32603 exists or bad NQN, -32602 bad serial.

    `dmrsl`: most blocks that one discard may name. From anything but 0 Linux concludes that there are discards,
    whatever is offered (drivers/nvme/host/core.c, nvme_config_discard).
    """
    params = {
        "nqn": nqn,
        "serial_number": serial,
        "model_number": model,
        "allow_any_host": False,
        "ana_reporting": ana_reporting,
        "max_namespaces": max_namespaces,
    }
    await rpc.call("nvmf_create_subsystem", params | given(dmrsl=dmrsl))


async def delete_subsystem(rpc: Rpc, nqn: str) -> None:
    """Disconnect all hosts and remove the subsystem. -32602 absent."""
    await rpc.call("nvmf_delete_subsystem", {"nqn": nqn})


async def ensure_no_subsystem(rpc: Rpc, nqn: str) -> None:
    """`delete_subsystem`; absent is fine."""
    try:
        await delete_subsystem(rpc, nqn)
    except RpcError:
        if await get_subsystem(rpc, nqn) is not None:
            raise


async def get_subsystem(rpc: Rpc, nqn: str) -> SubsystemInfo | None:
    """The subsystem, None when there is none (-19)."""
    try:
        result = await rpc.call("nvmf_get_subsystems", {"nqn": nqn})
    except RpcError as error:
        if error.code == -errno.ENODEV:
            return None
        raise
    found = read("nvmf_get_subsystems", result, list[SubsystemInfo])
    return found[0] if found else None


async def list_subsystems(rpc: Rpc) -> list[SubsystemInfo]:
    """All subsystems, the discovery subsystem among them."""
    return read("nvmf_get_subsystems", await rpc.call("nvmf_get_subsystems"), list[SubsystemInfo])


async def max_subsystems(rpc: Rpc) -> int | None:
    """How many subsystems the target takes, the discovery subsystem included; None: it does not tell.

    It is part of the configuration that the target would save (framework_get_config, spdk_nvmf_tgt_write_config_json).
    """
    try:
        result = await rpc.call("framework_get_config", {"name": "nvmf"})
    except RpcError:
        return None
    for each in read("framework_get_config", result, list[_Configured]):
        if each.method == "nvmf_set_max_subsystems":
            return int(each.params["max_subsystems"])
    return None


# --- namespaces ---


async def add_namespace(
    rpc: Rpc, nqn: str, bdev_name: str, *, nsid: int | None = None, uuid: str | None = None, nguid: str | None = None
) -> int:
    """Export the bdev; returns the namespace id. UUID and NGUID default to the bdev's UUID. -32602 for any refusal."""
    namespace = given(bdev_name=bdev_name, nsid=nsid, uuid=uuid, nguid=nguid)
    return read(
        "nvmf_subsystem_add_ns", await rpc.call("nvmf_subsystem_add_ns", {"nqn": nqn, "namespace": namespace}), int
    )


async def remove_namespace(rpc: Rpc, nqn: str, nsid: int) -> None:
    """Stop exporting; connected hosts lose the namespace, not the connection. -32602 absent."""
    await rpc.call("nvmf_subsystem_remove_ns", {"nqn": nqn, "nsid": nsid})


# --- hosts ---


async def add_host(rpc: Rpc, nqn: str, host: str) -> None:
    """Let the host connect. -32603 when it already may, or its NQN is malformed; -32602 no such subsystem."""
    await rpc.call("nvmf_subsystem_add_host", {"nqn": nqn, "host": host})


async def remove_host(rpc: Rpc, nqn: str, host: str) -> None:
    """Forbid the host to connect and cut its connections (measured: at once). -32603 when it was not allowed."""
    await rpc.call("nvmf_subsystem_remove_host", {"nqn": nqn, "host": host})


# --- listeners ---


async def add_listener(rpc: Rpc, nqn: str, address: str, port: int, *, ana_state: AnaState | None = None) -> None:
    """Accept connections to the subsystem there. -32602 when it already does, or the address is not this machine's."""
    params = given(nqn=nqn, listen_address=_listen_address(address, port), ana_state=ana_state)
    await rpc.call("nvmf_subsystem_add_listener", params)


async def remove_listener(rpc: Rpc, nqn: str, address: str, port: int) -> None:
    """Accept no more connections there. -32602 when there is no such listener."""
    await rpc.call("nvmf_subsystem_remove_listener", {"nqn": nqn, "listen_address": _listen_address(address, port)})


async def get_listeners(rpc: Rpc, nqn: str) -> list[ListenerInfo]:
    """The listeners of a subsystem and their ANA states."""
    return read(
        "nvmf_subsystem_get_listeners", await rpc.call("nvmf_subsystem_get_listeners", {"nqn": nqn}), list[ListenerInfo]
    )


async def set_ana_state(rpc: Rpc, nqn: str, address: str, port: int, state: AnaState) -> None:
    """Tell hosts that the paths through this listener are in `state`; `inaccessible` holds their I/O back."""
    params = {"nqn": nqn, "listen_address": _listen_address(address, port), "ana_state": state}
    await rpc.call("nvmf_subsystem_listener_set_ana_state", params)


# --- connected hosts ---


async def get_controllers(rpc: Rpc, nqn: str) -> list[ControllerInfo]:
    """Who is connected to the subsystem."""
    return read(
        "nvmf_subsystem_get_controllers",
        await rpc.call("nvmf_subsystem_get_controllers", {"nqn": nqn}),
        list[ControllerInfo],
    )


async def get_qpairs(rpc: Rpc, nqn: str) -> list[QpairInfo]:
    """The connections of the hosts of the subsystem."""
    return read("nvmf_subsystem_get_qpairs", await rpc.call("nvmf_subsystem_get_qpairs", {"nqn": nqn}), list[QpairInfo])


def _listen_address(address: str, port: int) -> dict[str, str]:
    adrfam = "IPv6" if ":" in address else "IPv4"
    return {"trtype": TRTYPE, "adrfam": adrfam, "traddr": address, "trsvcid": str(port)}
