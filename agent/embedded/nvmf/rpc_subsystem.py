"""JSON-RPC: creating, deleting and listing subsystems, their hosts, controllers and queues."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from agent.embedded.nvmf import nqn as nqns
from agent.embedded.nvmf.controller import Controller
from agent.embedded.nvmf.parameters import (
    INTERNAL_FAULT,
    SubsystemParams,
    TargetParams,
    check_target,
    describe_address,
    find_subsystem,
)
from agent.embedded.nvmf.subsystem import (
    DEFAULT_NAMESPACES,
    MAX_CNTLID,
    MIN_CNTLID,
    Namespace,
    Subsystem,
    SubsystemOptions,
    drained,
)
from agent.embedded.nvmf.target import Target
from agent.embedded.rpc import INTERNAL_ERROR, INVALID_PARAMETERS, INVALID_PARAMS, Methods, Params, RpcFault

_PRINTABLE = re.compile(r"[\x20-\x7e]*")
_DEFAULTS = SubsystemOptions()
_THREAD = "nvmf_tgt_poll_group_000"


class CreateSubsystem(SubsystemParams, kw_only=True):
    serial_number: str = _DEFAULTS.serial
    model_number: str = _DEFAULTS.model
    max_namespaces: int = DEFAULT_NAMESPACES
    allow_any_host: bool = False
    ana_reporting: bool = False
    min_cntlid: int = MIN_CNTLID
    max_cntlid: int = MAX_CNTLID
    max_discard_size_kib: int | None = None
    max_write_zeroes_size_kib: int | None = None
    dmrsl: int = _DEFAULTS.dmrsl
    wzsl: int = _DEFAULTS.wzsl
    passthrough: bool = False
    enable_nssr: bool = False


class GetSubsystems(TargetParams):
    nqn: str | None = None


class GetConfig(Params):
    name: str


class HostParams(SubsystemParams, kw_only=True):
    host: str


class AddHost(HostParams, forbid_unknown_fields=False, kw_only=True):
    dhchap_key: str | None = None
    dhchap_ctrlr_key: str | None = None


class RemoveHost(HostParams, kw_only=True):
    timeout_ms: int | None = None


class AllowAnyHost(SubsystemParams, kw_only=True):
    allow_any_host: bool


class SubsystemMethods:
    def __init__(self, target: Target) -> None:
        self._target = target

    def register(self, methods: Methods) -> None:
        for name, params, handler in (
            ("nvmf_create_subsystem", CreateSubsystem, self.create),
            ("nvmf_delete_subsystem", SubsystemParams, self.delete),
            ("nvmf_get_subsystems", GetSubsystems, self.get),
            ("framework_get_config", GetConfig, self.config),
            ("nvmf_subsystem_add_host", AddHost, self.add_host),
            ("nvmf_subsystem_remove_host", RemoveHost, self.remove_host),
            ("nvmf_subsystem_allow_any_host", AllowAnyHost, self.allow_any_host),
            ("nvmf_subsystem_get_controllers", SubsystemParams, self.controllers),
            ("nvmf_subsystem_get_qpairs", SubsystemParams, self.qpairs),
        ):
            methods.add(name, params, handler, INVALID_PARAMETERS)  # type: ignore[arg-type]

    async def create(self, params: CreateSubsystem) -> bool:
        options = _options(params)
        check_target(params, f"Unable to find target {params.tgt_name}")
        is_full = len(self._target.subsystems) >= self._target.max_subsystems
        if is_full or params.nqn in self._target.subsystems or not nqns.is_valid(params.nqn):
            raise RpcFault(INTERNAL_ERROR, f"Unable to create subsystem {params.nqn}")
        low, high = params.min_cntlid, params.max_cntlid
        if not MIN_CNTLID <= low <= high <= MAX_CNTLID:
            raise RpcFault(INVALID_PARAMS, f"Invalid cntlid range [{low}-{high}]")
        self._target.create(params.nqn, options).allow_any_host = params.allow_any_host
        return True

    async def config(self, params: GetConfig) -> list[dict[str, Any]]:
        """Of what the real one would save, what nothing else tells."""
        if params.name != "nvmf":
            raise RpcFault(INVALID_PARAMS, f"Subsystem '{params.name}' not found")
        return [{"method": "nvmf_set_max_subsystems", "params": {"max_subsystems": self._target.max_subsystems}}]

    async def delete(self, params: SubsystemParams) -> bool:
        subsystem = find_subsystem(self._target, params)
        if subsystem.is_discovery:
            raise INVALID_PARAMETERS
        await self._target.delete(subsystem.nqn)
        return True

    async def get(self, params: GetSubsystems) -> list[dict[str, Any]]:
        check_target(params)
        if params.nqn is None:
            return [describe_subsystem(each) for _, each in sorted(self._target.subsystems.items())]
        subsystem = self._target.subsystems.get(params.nqn)
        if subsystem is None:
            raise RpcFault.no_device()
        return [describe_subsystem(subsystem)]

    async def add_host(self, params: AddHost) -> bool:
        subsystem = find_subsystem(self._target, params)
        if params.dhchap_key is not None or params.dhchap_ctrlr_key is not None:
            raise INVALID_PARAMETERS  # there is no keyring
        if not nqns.is_valid(params.host) or params.host in subsystem.hosts:
            raise INTERNAL_FAULT
        subsystem.add_host(params.host)
        return True

    async def remove_host(self, params: RemoveHost) -> bool:
        """Answers when no I/O of the host can reach a bdev any more."""
        subsystem = find_subsystem(self._target, params)
        if params.host not in subsystem.hosts:
            raise INTERNAL_FAULT
        limit_s = params.timeout_ms / 1000 if params.timeout_ms else None
        try:
            async with asyncio.timeout(limit_s):
                await drained(subsystem.remove_host(params.host))
        except TimeoutError as error:
            raise RpcFault(INTERNAL_ERROR, "Timeout reached during host removal") from error
        return True

    async def allow_any_host(self, params: AllowAnyHost) -> bool:
        find_subsystem(self._target, params).set_allow_any_host(params.allow_any_host)
        return True

    async def controllers(self, params: SubsystemParams) -> list[dict[str, Any]]:
        """`num_io_qpairs` counts the admin queue too, as in the real target."""
        return [
            {
                "cntlid": controller.cntlid,
                "cntrltype": "discovery" if controller.subsystem.is_discovery else "io",
                "hostnqn": controller.hostnqn,
                "hostid": str(controller.hostid),
                "num_io_qpairs": len(controller.queues),
            }
            for controller in _controllers(find_subsystem(self._target, params))
        ]

    async def qpairs(self, params: SubsystemParams) -> list[dict[str, Any]]:
        return [
            {
                "cntlid": controller.cntlid,
                "qid": queue.qid,
                "state": "enabled",
                "thread": _THREAD,
                "hostnqn": controller.hostnqn,
                "listen_address": describe_address(queue.local),
                "peer_address": describe_address(queue.peer),
            }
            for controller in _controllers(find_subsystem(self._target, params))
            for queue in controller.queues.values()
        ]


def _options(params: CreateSubsystem) -> SubsystemOptions:
    """Raises RpcFault -32602 for values that the real target does not decode."""
    for text, limit in ((params.serial_number, 20), (params.model_number, 40)):
        if len(text) > limit or not _PRINTABLE.fullmatch(text):
            raise INVALID_PARAMETERS
    dmrsl, wzsl = params.dmrsl, params.wzsl
    if params.max_discard_size_kib is not None:
        dmrsl = params.max_discard_size_kib * 2
    size = params.max_write_zeroes_size_kib
    if size is not None:
        if size != 0 and (size < 8 or size & (size - 1)):
            raise RpcFault(INVALID_PARAMS, f"Invalid max_write_zeroes_size_kib {size}")
        wzsl = (size >> 2).bit_length() - 1 if size else 0
    ranges = ((dmrsl, 32), (wzsl, 8), (params.max_namespaces, 32), (params.min_cntlid, 16), (params.max_cntlid, 16))
    if any(not 0 <= value < 1 << bits for value, bits in ranges):
        raise INVALID_PARAMETERS
    return SubsystemOptions(
        serial=params.serial_number,
        model=params.model_number,
        max_namespaces=params.max_namespaces or DEFAULT_NAMESPACES,
        ana_reporting=params.ana_reporting,
        min_cntlid=params.min_cntlid,
        max_cntlid=params.max_cntlid,
        dmrsl=dmrsl,
        wzsl=wzsl,
    )


def _controllers(subsystem: Subsystem) -> list[Controller]:
    return [each for each in subsystem.controllers.values() if isinstance(each, Controller)]


def describe_subsystem(subsystem: Subsystem) -> dict[str, Any]:
    """One element of `nvmf_get_subsystems`."""
    options = subsystem.options
    described: dict[str, Any] = {
        "nqn": subsystem.nqn,
        "subtype": "Discovery" if subsystem.is_discovery else "NVMe",
        "listen_addresses": [describe_address(address) for address in reversed(subsystem.listeners)],
        "allow_any_host": subsystem.allow_any_host,
        "hosts": [{"nqn": host} for host in subsystem.hosts],
    }
    if subsystem.is_discovery:
        return described
    return {
        **described,
        "serial_number": options.serial,
        "model_number": options.model,
        "max_namespaces": options.max_namespaces,
        "passthrough": False,
        "min_cntlid": options.min_cntlid,
        "max_cntlid": options.max_cntlid,
        "dmrsl": options.dmrsl,
        "wzsl": options.wzsl,
        "namespaces": [_namespace(each, options.ana_reporting) for each in subsystem.sorted_namespaces()],
    }


def _namespace(namespace: Namespace, ana_reporting: bool) -> dict[str, Any]:
    described: dict[str, Any] = {
        "nsid": namespace.nsid,
        "bdev_name": namespace.bdev.name,
        "name": namespace.bdev.name,
        "nguid": namespace.nguid.hex().upper(),
    }
    if any(namespace.eui64):
        described["eui64"] = namespace.eui64.hex().upper()
    described["uuid"] = str(namespace.uuid)
    if ana_reporting:
        described["anagrpid"] = namespace.ana_group
    return described
