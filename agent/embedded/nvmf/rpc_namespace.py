"""JSON-RPC: namespaces and listeners of subsystems, with their ANA groups and states."""

from __future__ import annotations

import errno
import uuid
from typing import Any

from agent.embedded.bdev import BdevRegistry, Claimed
from agent.embedded.nvmf.parameters import (
    ANA_STATES,
    ListenerParams,
    SubsystemParams,
    ana_state,
    describe_address,
    find_subsystem,
    tcp_address,
)
from agent.embedded.nvmf.subsystem import CLAIM, Address, Namespace, Subsystem, drained
from agent.embedded.nvmf.target import Target
from agent.embedded.rpc import INTERNAL_ERROR, INVALID_PARAMETERS, INVALID_PARAMS, Methods, Params, RpcFault
from agent.nvmf.identify import AnaState

_STATE_NAMES = {state: name for name, state in ANA_STATES.items()}


class NamespaceSpec(Params):
    bdev_name: str
    nsid: int = 0
    nguid: str = ""
    eui64: str = ""
    uuid: str = ""
    anagrpid: int = 0
    ptpl_file: str | None = None
    no_auto_visible: bool = False
    hide_metadata: bool = False


class AddNamespace(SubsystemParams, forbid_unknown_fields=False, kw_only=True):
    namespace: NamespaceSpec


class RemoveNamespace(SubsystemParams, kw_only=True):
    nsid: int


class SetAnaGroup(SubsystemParams, kw_only=True):
    nsid: int
    anagrpid: int


class AddListener(ListenerParams, forbid_unknown_fields=False, kw_only=True):
    secure_channel: bool = False
    ana_state: str = "optimized"
    sock_impl: str | None = None


class SetAnaState(ListenerParams, kw_only=True):
    ana_state: str
    anagrpid: int = 0


class NamespaceMethods:
    def __init__(self, target: Target, bdevs: BdevRegistry) -> None:
        self._target = target
        self._bdevs = bdevs

    def register(self, methods: Methods) -> None:
        for name, params, handler in (
            ("nvmf_subsystem_add_ns", AddNamespace, self.add_namespace),
            ("nvmf_subsystem_remove_ns", RemoveNamespace, self.remove_namespace),
            ("nvmf_subsystem_set_ns_ana_group", SetAnaGroup, self.set_ana_group),
            ("nvmf_subsystem_add_listener", AddListener, self.add_listener),
            ("nvmf_subsystem_remove_listener", ListenerParams, self.remove_listener),
            ("nvmf_subsystem_get_listeners", SubsystemParams, self.listeners),
            ("nvmf_subsystem_listener_set_ana_state", SetAnaState, self.set_ana_state),
        ):
            methods.add(name, params, handler, INVALID_PARAMETERS)  # type: ignore[arg-type]

    # --- namespaces -----------------------------------------------------------------------------------------------

    async def add_namespace(self, params: AddNamespace) -> int:
        spec = params.namespace
        subsystem = find_subsystem(self._target, params)
        identity, nguid, eui64 = _identifiers(spec)
        nsid = spec.nsid or subsystem.free_nsid()
        limit = subsystem.options.max_namespaces
        if nsid is None or not 0 < nsid <= limit or nsid in subsystem.namespaces or subsystem.is_discovery:
            raise INVALID_PARAMETERS
        if not 0 <= spec.anagrpid <= limit or spec.no_auto_visible:
            raise INVALID_PARAMETERS
        bdev = self._bdevs.get(spec.bdev_name)
        if bdev is None:
            raise INVALID_PARAMETERS
        try:
            bdev.claim(CLAIM)
        except Claimed as error:
            raise RpcFault(INVALID_PARAMS, "Invalid parameters") from error
        own = uuid.UUID(bdev.uuid)
        namespace = Namespace(nsid, bdev, identity or own, nguid or own.bytes, eui64 or bytes(8), spec.anagrpid or nsid)
        subsystem.add_namespace(namespace)
        return nsid

    async def remove_namespace(self, params: RemoveNamespace) -> bool:
        """Answers when the I/O in flight on the namespace has ended."""
        subsystem = find_subsystem(self._target, params)
        if params.nsid not in subsystem.namespaces:
            raise INVALID_PARAMETERS
        await subsystem.remove_namespace(params.nsid).drained()
        return True

    async def set_ana_group(self, params: SetAnaGroup) -> bool:
        subsystem = find_subsystem(self._target, params)
        namespace = subsystem.namespaces.get(params.nsid)
        if namespace is None or not 0 < params.anagrpid <= subsystem.options.max_namespaces:
            raise INVALID_PARAMETERS
        subsystem.set_ana_group(namespace, params.anagrpid)
        return True

    # --- listeners ------------------------------------------------------------------------------------------------

    async def add_listener(self, params: AddListener) -> bool:
        state = ana_state(params.ana_state)
        subsystem = find_subsystem(self._target, params)
        address = tcp_address(params.listen_address)
        if params.secure_channel or self._target.transport is None or address in subsystem.listeners:
            raise INVALID_PARAMETERS
        if state is not AnaState.OPTIMIZED and not subsystem.options.ana_reporting:
            raise INVALID_PARAMETERS
        try:
            await self._target.ports.acquire(address)
        except (OSError, ValueError) as error:
            raise RpcFault(INVALID_PARAMS, "Invalid parameters") from error
        if subsystem.deleted or address in subsystem.listeners:
            await self._target.ports.release(address)
            raise INVALID_PARAMETERS
        subsystem.add_listener(address, state)
        return True

    async def remove_listener(self, params: ListenerParams) -> bool:
        subsystem = find_subsystem(self._target, params)
        address = tcp_address(params.listen_address)
        if address not in subsystem.listeners:
            raise INVALID_PARAMETERS
        await drained(subsystem.remove_listener(address))
        await self._target.ports.release(address)
        return True

    async def listeners(self, params: SubsystemParams) -> list[dict[str, Any]]:
        subsystem = find_subsystem(self._target, params)
        return [_describe_listener(subsystem, address) for address in reversed(subsystem.listeners)]

    async def set_ana_state(self, params: SetAnaState) -> bool:
        state = ana_state(params.ana_state)
        try:
            subsystem = find_subsystem(self._target, params)
        except RpcFault as fault:
            message = f"Unable to find subsystem with NQN {params.nqn}"
            raise fault if fault.code != INVALID_PARAMS else RpcFault(INVALID_PARAMS, message) from fault
        listener = subsystem.listeners.get(tcp_address(params.listen_address))
        known_group = 0 <= params.anagrpid <= subsystem.options.max_namespaces
        if not subsystem.options.ana_reporting or not known_group or listener is None:
            raise RpcFault(INTERNAL_ERROR, f"error setting ANA state: {-errno.EINVAL}")
        subsystem.set_ana_state(listener, state, params.anagrpid or None)
        return True


def _describe_listener(subsystem: Subsystem, address: Address) -> dict[str, Any]:
    described: dict[str, Any] = {"address": describe_address(address)}
    if subsystem.options.ana_reporting:
        listener = subsystem.listeners[address]
        described["ana_states"] = [
            {"ana_group": group, "ana_state": _STATE_NAMES[listener.state(group)]}
            for group in range(1, subsystem.options.max_namespaces + 1)
        ]
    return described


def _identifiers(spec: NamespaceSpec) -> tuple[uuid.UUID | None, bytes, bytes]:
    """UUID, NGUID and EUI-64 as given, or None and empty; raises RpcFault -32602 when malformed."""
    try:
        identity = uuid.UUID(spec.uuid) if spec.uuid else None
        nguid, eui64 = bytes.fromhex(spec.nguid), bytes.fromhex(spec.eui64)
    except ValueError as error:
        raise RpcFault(INVALID_PARAMS, "Invalid parameters") from error
    if len(nguid) not in (0, 16) or len(eui64) not in (0, 8):
        raise INVALID_PARAMETERS
    return identity, nguid, eui64
