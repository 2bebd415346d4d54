"""JSON-RPC: `nvmf_create_transport`, `nvmf_get_transports`, `nvmf_get_stats`, `nvmf_get_targets`."""

from __future__ import annotations

import dataclasses
from functools import reduce
from operator import or_
from typing import Any, Literal

from agent.embedded.nvmf.controller import Controller
from agent.embedded.nvmf.parameters import TARGET_NAME, TCP, TargetParams, check_target
from agent.embedded.nvmf.settings import KAS_UNIT_MS, TransportSettings
from agent.embedded.nvmf.target import Target
from agent.embedded.rpc import (
    INTERNAL_ERROR,
    INVALID_PARAMETERS,
    INVALID_PARAMS,
    Methods,
    NoParams,
    RpcFault,
)
from agent.nvmf.identify import OptionalCommands

_MIN_IO_BYTES = 8192
_MIN_AQ_DEPTH = 32
_TICK_RATE = 1_000_000_000
_Optional = Literal["nvmcmps", "nvmdsmsv", "nvmwzsv", "reservs", "nvmcpys"]
_OFFERED = {  # the others are never offered
    "nvmcmps": OptionalCommands.COMPARE,
    "nvmdsmsv": OptionalCommands.DATASET_MANAGEMENT,
    "nvmwzsv": OptionalCommands.WRITE_ZEROES,
}


class CreateTransport(TargetParams, forbid_unknown_fields=False, kw_only=True):
    """Members of other transports are accepted and ignored, as by the real target."""

    trtype: str
    max_queue_depth: int | None = None
    max_aq_depth: int | None = None
    max_io_qpairs_per_ctrlr: int | None = None
    in_capsule_data_size: int | None = None
    max_io_size: int | None = None
    c2h_success: bool | None = None
    kas: int | None = None
    min_kato: int | None = None
    abort_timeout_sec: int | None = None
    sock_priority: int | None = None
    ack_timeout: int | None = None
    zcopy: bool | None = None
    dif_insert_or_strip: bool | None = None
    data_wr_pool_size: int | None = None
    disable_command_passthru: bool | None = None
    iobuf_small_cache_size: int | None = None
    iobuf_large_cache_size: int | None = None
    masked_oncs: tuple[_Optional, ...] = ()


class GetTransports(TargetParams):
    trtype: str | None = None


class TransportMethods:
    def __init__(self, target: Target) -> None:
        self._target = target

    def register(self, methods: Methods) -> None:
        methods.add("nvmf_create_transport", CreateTransport, self.create, INVALID_PARAMETERS)
        methods.add("nvmf_get_transports", GetTransports, self.get, INVALID_PARAMETERS)
        methods.add("nvmf_get_stats", TargetParams, self.stats, INVALID_PARAMETERS)
        methods.add("nvmf_get_targets", NoParams, self.targets)

    async def create(self, params: CreateTransport) -> bool:
        check_target(params)
        if params.trtype.upper() != TCP:
            raise RpcFault(INVALID_PARAMS, f"Invalid transport type '{params.trtype}'")
        settings = _settings(params)
        if self._target.transport is not None:
            raise RpcFault(INTERNAL_ERROR, f"Transport type '{params.trtype}' already exists")
        if not _possible(settings):
            raise RpcFault(INTERNAL_ERROR, f"Transport type '{params.trtype}' create failed")
        self._target.transport = settings
        return True

    async def get(self, params: GetTransports) -> list[dict[str, Any]]:
        check_target(params)
        settings = self._target.transport
        if params.trtype is not None and (settings is None or params.trtype.upper() != TCP):
            raise RpcFault.no_device()
        return [] if settings is None else [_describe(settings)]

    async def stats(self, params: TargetParams) -> dict[str, Any]:
        check_target(params)
        target = self._target
        controllers = [each for subsystem in target.subsystems.values() for each in subsystem.controllers.values()]
        queues = [qid for each in controllers if isinstance(each, Controller) for qid in each.queues]
        group = {
            "name": "nvmf_tgt_poll_group_000",
            "admin_qpairs": target.admin_queues,
            "io_qpairs": target.io_queues,
            "current_admin_qpairs": queues.count(0),
            "current_io_qpairs": len(queues) - queues.count(0),
            "current_unassociated_qpairs": target.ports.unassociated,
            "pending_bdev_io": 0,
            "completed_nvme_io": target.completed_io,
            "transports": [{"trtype": TCP}] if target.transport is not None else [],
        }
        return {"tick_rate": _TICK_RATE, "poll_groups": [group]}

    async def targets(self, params: NoParams) -> list[str]:
        return [TARGET_NAME]


def _settings(params: CreateTransport) -> TransportSettings:
    names = [field.name for field in dataclasses.fields(TransportSettings)]
    given = {name: value for name in names if (value := getattr(params, name, None)) is not None}
    if any(isinstance(value, int) and not 0 <= value <= 0xFFFFFFFF for value in given.values()):
        raise INVALID_PARAMETERS
    settings = TransportSettings(**given)
    if settings.max_queue_depth > 0xFFFF or settings.max_io_qpairs_per_ctrlr > 0xFFFE or settings.kas > 0xFFFF:
        raise INVALID_PARAMETERS
    step = max(settings.kas * KAS_UNIT_MS, 1)
    return dataclasses.replace(
        settings,
        max_aq_depth=max(settings.max_aq_depth, _MIN_AQ_DEPTH),
        min_kato=-(-settings.min_kato // step) * step,
        masked=reduce(or_, (_OFFERED.get(each, OptionalCommands.NONE) for each in params.masked_oncs), settings.masked),
    )


def _possible(settings: TransportSettings) -> bool:
    size = settings.max_io_size
    return (
        size >= _MIN_IO_BYTES
        and size & (size - 1) == 0
        and settings.in_capsule_data_size <= size
        and settings.max_queue_depth >= 2
        and settings.kas > 0
        and settings.min_kato > 0
    )


def _describe(settings: TransportSettings) -> dict[str, Any]:
    return {
        "trtype": TCP,
        "max_queue_depth": settings.max_queue_depth,
        "max_io_qpairs_per_ctrlr": settings.max_io_qpairs_per_ctrlr,
        "in_capsule_data_size": settings.in_capsule_data_size,
        "max_io_size": settings.max_io_size,
        "max_aq_depth": settings.max_aq_depth,
        "iobuf_small_cache_size": settings.iobuf_small_cache_size,
        "iobuf_large_cache_size": settings.iobuf_large_cache_size,
        "dif_insert_or_strip": settings.dif_insert_or_strip,
        "zcopy": settings.zcopy,
        "c2h_success": settings.c2h_success,
        "sock_priority": settings.sock_priority,
        "abort_timeout_sec": settings.abort_timeout_sec,
        "ack_timeout": settings.ack_timeout,
        "data_wr_pool_size": settings.data_wr_pool_size,
        "disable_command_passthru": settings.disable_command_passthru,
        "kas": settings.kas,
        "min_kato": settings.min_kato,
    }
