"""What the `nvmf_*` methods share: their parameter structs, the checks of target and subsystem names, addresses."""

from __future__ import annotations

from agent.embedded.nvmf.subsystem import Address, Subsystem
from agent.embedded.nvmf.target import Target
from agent.embedded.rpc import INTERNAL_ERROR, INVALID_PARAMETERS, INVALID_PARAMS, Params, RpcFault
from agent.nvmf.identify import AnaState

TARGET_NAME = "nvmf_tgt"
TCP = "TCP"
INTERNAL_FAULT = RpcFault(INTERNAL_ERROR, "Internal error")
ANA_STATES = {
    "optimized": AnaState.OPTIMIZED,
    "non_optimized": AnaState.NON_OPTIMIZED,
    "inaccessible": AnaState.INACCESSIBLE,
}
_TRANSPORTS = ("RDMA", "FC", "TCP", "VFIOUSER", "PCIE", "CUSTOM")
_FAMILIES = {"ipv4": "IPv4", "ipv6": "IPv6", "ib": "IB", "fc": "FC", "intra_host": "Intra_host"}


class TargetParams(Params):
    """Every method may name the target; there is one."""

    tgt_name: str | None = None


class SubsystemParams(TargetParams, kw_only=True):
    nqn: str


class ListenAddress(Params):
    trtype: str
    traddr: str
    adrfam: str | None = None
    trsvcid: str | None = None


class ListenerParams(SubsystemParams, kw_only=True):
    listen_address: ListenAddress


def check_target(params: TargetParams, message: str = "Unable to find a target.") -> None:
    """Raises RpcFault when another target than the only one is named."""
    if params.tgt_name not in (None, TARGET_NAME):
        raise RpcFault(INTERNAL_ERROR, message)


def find_subsystem(target: Target, params: SubsystemParams) -> Subsystem:
    """Raises RpcFault -32602 when there is none of that name."""
    check_target(params)
    subsystem = target.subsystems.get(params.nqn)
    if subsystem is None:
        raise INVALID_PARAMETERS
    return subsystem


def tcp_address(address: ListenAddress) -> Address:
    """The address as it is kept; raises RpcFault -32602 for other transports and families."""
    if address.trtype.upper() not in _TRANSPORTS:
        raise INVALID_PARAMETERS
    family = _FAMILIES.get((address.adrfam or "IPv4").lower())
    if address.trtype.upper() != TCP or family is None:
        raise INVALID_PARAMETERS
    if len(address.traddr) > 255 or len(address.trsvcid or "") > 31:
        raise INVALID_PARAMETERS
    return Address(family, address.traddr, address.trsvcid or "")


def ana_state(name: str) -> AnaState:
    """Raises RpcFault -32602 for states that the real target cannot decode."""
    try:
        return ANA_STATES[name]
    except KeyError as error:
        raise RpcFault(INVALID_PARAMS, "Invalid parameters") from error


def describe_address(address: Address) -> dict[str, str]:
    return {"trtype": TCP, "adrfam": address.family, "traddr": address.host, "trsvcid": address.service}
