"""Admin and property commands of the embedded target's controllers: who handles which, and who may send it."""

from __future__ import annotations

from agent.embedded.nvmf import describe, features, logpages
from agent.embedded.nvmf.controller import ADMIN_OPCODES, DISCOVERY_OPCODES, Controller
from agent.embedded.nvmf.logpages import Discovery
from agent.embedded.nvmf.request import Refusal, Reply, Request
from agent.nvmf.command import AdminOpcode, FabricsType
from agent.nvmf.identify import IDENTIFY_BYTES
from agent.nvmf.status import Status

_WITHOUT_NAMESPACE = {AdminOpcode.ABORT, AdminOpcode.ASYNC_EVENT_REQUEST, AdminOpcode.KEEP_ALIVE}


async def execute(controller: Controller, request: Request, discovery: Discovery) -> Reply:
    """One command of the admin queue behind Connect; raises Refusal."""
    command = request.command
    if command.is_fabrics:
        return _property(controller, request)
    if command.flags & 3 or (command.opcode in _WITHOUT_NAMESPACE and command.nsid):
        raise Refusal(Status.INVALID_FIELD)
    if not controller.registers.enabled:
        raise Refusal(Status.COMMAND_SEQUENCE_ERROR)
    known = DISCOVERY_OPCODES if controller.subsystem.is_discovery else ADMIN_OPCODES
    if command.opcode not in known:
        raise Refusal(Status.INVALID_OPCODE)
    if command.opcode == AdminOpcode.ASYNC_EVENT_REQUEST:
        return Reply(await controller.events.wait(command.cid))
    return _simple(controller, request, discovery)


def _simple(controller: Controller, request: Request, discovery: Discovery) -> Reply:
    command = request.command
    if command.opcode == AdminOpcode.IDENTIFY:
        if request.length < IDENTIFY_BYTES:
            raise Refusal(Status.INVALID_FIELD)
        csi = command.cdw11 >> 24
        return Reply(data=describe.identify(controller, command.cdw10 & 0xFF, command.nsid, csi))
    if command.opcode == AdminOpcode.GET_LOG_PAGE:
        return logpages.get_log_page(controller, request, discovery)
    if command.opcode == AdminOpcode.GET_FEATURES:
        return features.get_feature(controller, request)
    if command.opcode == AdminOpcode.SET_FEATURES:
        return features.set_feature(controller, request)
    if command.opcode == AdminOpcode.ABORT:
        return Reply(0 if controller.abort(command.cdw10 & 0xFFFF, command.cdw10 >> 16) else 1)
    controller.keep_alive()
    return Reply()


def _property(controller: Controller, request: Request) -> Reply:
    command = request.command
    size_code = command.cdw10 & 7
    if command.fabrics_type == FabricsType.PROPERTY_GET:
        return Reply(controller.registers.get(command.cdw11, size_code))
    if command.fabrics_type == FabricsType.PROPERTY_SET:
        value = command.cdw12 | command.cdw13 << 32
        controller.change(controller.registers.set(command.cdw11, size_code, value))
        return Reply()
    raise Refusal(Status.INVALID_OPCODE)
