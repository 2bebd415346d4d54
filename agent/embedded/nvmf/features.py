"""Get Features and Set Features of the embedded target's controllers (NVM Express Base 2.0, sections 5.15 and 5.27)."""

from __future__ import annotations

from agent.embedded.nvmf.controller import Controller
from agent.embedded.nvmf.request import Refusal, Reply, Request
from agent.nvmf.command import GLOBAL_NSID, Feature
from agent.nvmf.status import Status

_HOST_BEHAVIOR_BYTES = 512
_DISCOVERY = {Feature.KEEP_ALIVE_TIMER, Feature.ASYNC_EVENT_CONFIGURATION}
_STORED = {
    Feature.ARBITRATION,
    Feature.POWER_MANAGEMENT,
    Feature.TEMPERATURE_THRESHOLD,
    Feature.ERROR_RECOVERY,
    Feature.VOLATILE_WRITE_CACHE,
    Feature.WRITE_ATOMICITY,
}
"""Kept and given back, without effect."""
_EVENT_BITS = 0xFFFFFFFF
SUPPORTED = frozenset(Feature)


def get_feature(controller: Controller, request: Request) -> Reply:
    feature = _feature(controller, request)
    if feature is Feature.KEEP_ALIVE_TIMER:
        return Reply(controller.kato_ms)
    if feature is Feature.ASYNC_EVENT_CONFIGURATION:
        return Reply(controller.events.enabled)
    if feature is Feature.NUMBER_OF_QUEUES:
        return Reply(_queues(controller))
    if feature is Feature.INTERRUPT_VECTOR:
        return Reply(request.command.cdw11 & 0xFFFF | 1 << 16)  # coalescing disabled
    if feature is Feature.HOST_IDENTIFIER:
        if not request.command.cdw11 & 1:
            raise Refusal(Status.INVALID_FIELD)
        return Reply(data=controller.hostid.bytes)
    if feature is Feature.HOST_BEHAVIOR:
        return Reply(data=controller.host_behavior)
    return Reply(controller.features.get(feature, 0))


def set_feature(controller: Controller, request: Request) -> Reply:
    if request.command.cdw10 >> 31:
        raise Refusal(Status.FEATURE_NOT_SAVEABLE)
    feature = _feature(controller, request)
    value = request.command.cdw11
    if feature is Feature.KEEP_ALIVE_TIMER:
        if value == 0:
            raise Refusal(Status.KEEP_ALIVE_INVALID)
        controller.set_kato(value)
    elif feature is Feature.ASYNC_EVENT_CONFIGURATION:
        controller.events.enabled = value & _EVENT_BITS
    elif feature is Feature.NUMBER_OF_QUEUES:
        return _set_queues(controller, value)
    elif feature is Feature.HOST_BEHAVIOR:
        _set_behavior(controller, request)
    elif feature is Feature.HOST_IDENTIFIER:
        raise Refusal(Status.COMMAND_SEQUENCE_ERROR)  # fixed by Connect
    elif feature in _STORED:
        controller.features[feature] = value
    else:
        raise Refusal(Status.FEATURE_NOT_CHANGEABLE)
    return Reply()


def _feature(controller: Controller, request: Request) -> Feature:
    nsid = request.command.nsid
    if nsid > controller.subsystem.options.max_namespaces and nsid != GLOBAL_NSID:
        raise Refusal(Status.INVALID_NAMESPACE)
    identifier = request.command.cdw10 & 0xFF
    known = _DISCOVERY if controller.subsystem.is_discovery else SUPPORTED
    if identifier not in known:
        raise Refusal(Status.INVALID_FIELD)
    return Feature(identifier)


def _queues(controller: Controller) -> int:
    """Number of I/O submission and completion queues, each 0's based."""
    count = controller.settings.max_io_qpairs_per_ctrlr - 1
    return count | count << 16


def _set_queues(controller: Controller, value: int) -> Reply:
    if value & 0xFFFF == 0xFFFF or value >> 16 == 0xFFFF:
        raise Refusal(Status.INVALID_FIELD)
    if any(controller.queues.keys() - {0}):
        raise Refusal(Status.COMMAND_SEQUENCE_ERROR)
    return Reply(_queues(controller))


def _set_behavior(controller: Controller, request: Request) -> None:
    if len(request.data) != _HOST_BEHAVIOR_BYTES or request.data[0] > 1 or request.data[2] > 1:
        raise Refusal(Status.INVALID_FIELD)
    controller.host_behavior = bytes(request.data)
