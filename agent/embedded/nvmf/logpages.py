"""Get Log Page of the embedded target's controllers (NVM Express Base 2.0, section 5.16)."""

from __future__ import annotations

from collections.abc import Callable

from agent.embedded.nvmf.controller import ADMIN_OPCODES, Controller
from agent.embedded.nvmf.features import SUPPORTED as FEATURES
from agent.embedded.nvmf.request import Refusal, Reply, Request
from agent.embedded.nvmf.settings import FIRMWARE
from agent.nvmf import identify as ids
from agent.nvmf import logs
from agent.nvmf.command import GLOBAL_NSID, AdminOpcode, IoOpcode, LogPage
from agent.nvmf.status import Status

_SUPPORTED, _CONTENT_CHANGE = 1 << 0, 1 << 1
_SCOPE_NAMESPACE, _SCOPE_CONTROLLER = 1 << 20, 1 << 21
_CHANGING = {IoOpcode.WRITE, IoOpcode.WRITE_ZEROES, IoOpcode.DATASET_MANAGEMENT, IoOpcode.FLUSH}
_NAMESPACE_OPCODES = {
    AdminOpcode.IDENTIFY,
    AdminOpcode.GET_LOG_PAGE,
    AdminOpcode.GET_FEATURES,
    AdminOpcode.SET_FEATURES,
}
_NAMESPACE_PAGES = {LogPage.HEALTH}
"""Pages that may name a namespace; the others belong to the controller or the subsystem."""
_DISCOVERY_PAGES = {LogPage.SUPPORTED_PAGES, LogPage.FEATURE_EFFECTS, LogPage.DISCOVERY}
Discovery = Callable[[str], bytes]
"""The discovery log page as a host (by NQN) may see it."""


def get_log_page(controller: Controller, request: Request, discovery: Discovery) -> Reply:
    """The wanted part of a page, zeroes beyond its end; raises Refusal."""
    command = request.command
    identifier = command.cdw10 & 0xFF
    offset = command.cdw12 | command.cdw13 << 32
    length = ((command.cdw10 >> 16 | (command.cdw11 & 0xFFFF) << 16) + 1) * 4
    if offset % 4 or length > request.length:
        raise Refusal(Status.INVALID_FIELD)
    if not _known(controller, identifier):
        raise Refusal(Status.INVALID_LOG_PAGE)
    page = LogPage(identifier)
    if page not in _NAMESPACE_PAGES and command.nsid not in (0, GLOBAL_NSID):
        raise Refusal(Status.INVALID_FIELD)
    content = _content(controller, page, discovery, summary=bool(command.cdw10 >> 8 & 1))
    if offset >= len(content):
        raise Refusal(Status.INVALID_FIELD)
    if not command.cdw10 >> 15 & 1:
        controller.events.page_read(page)
    if page is LogPage.CHANGED_NAMESPACES:
        controller.events.changed = []
    return Reply(data=content[offset : offset + length])


def _known(controller: Controller, identifier: int) -> bool:
    return identifier in _offered(controller)


def _offered(controller: Controller) -> set[LogPage]:
    if controller.subsystem.is_discovery:
        return _DISCOVERY_PAGES
    absent = {LogPage.DISCOVERY} if controller.subsystem.options.ana_reporting else {LogPage.DISCOVERY, LogPage.ANA}
    return set(LogPage) - absent


def _content(controller: Controller, page: LogPage, discovery: Discovery, *, summary: bool) -> bytes:
    if page is LogPage.DISCOVERY:
        return discovery(controller.hostnqn)
    if page is LogPage.ANA:
        groups = controller.subsystem.ana_groups(controller.listener)
        return logs.pack_ana([logs.AnaGroup(group.group, group.state) for group in groups] if summary else groups)
    if page is LogPage.CHANGED_NAMESPACES:
        return ids.pack_nsid_list(controller.events.changed)
    if page is LogPage.HEALTH:
        return _health(controller)
    if page is LogPage.FIRMWARE_SLOT:
        return logs.pack_firmware(FIRMWARE)
    if page is LogPage.COMMAND_EFFECTS:
        return _effects()
    if page is LogPage.SUPPORTED_PAGES:
        return logs.pack_supported(_offered(controller))
    if page is LogPage.FEATURE_EFFECTS:
        return logs.pack_supported(FEATURES)
    if page is LogPage.MANAGEMENT_EFFECTS:
        return bytes(ids.IDENTIFY_BYTES)  # NVMe-MI: no command
    return bytes(64 * 128)  # error log: 128 entries, none used


def _health(controller: Controller) -> bytes:
    """Of the controller's own traffic; everything else is zero, as with the real target."""
    unit = 512_000
    return logs.Health(
        data_units_read=-(-controller.bytes_read // unit),
        data_units_written=-(-controller.bytes_written // unit),
        host_reads=controller.reads,
        host_writes=controller.writes,
    ).pack()


def _effects() -> bytes:
    admin: dict[int, int] = {
        opcode: _SUPPORTED | _SCOPE_CONTROLLER | (_SCOPE_NAMESPACE if opcode in _NAMESPACE_OPCODES else 0)
        for opcode in ADMIN_OPCODES
    }
    nvm: dict[int, int] = {
        opcode: _SUPPORTED | _SCOPE_NAMESPACE | (_CONTENT_CHANGE if opcode in _CHANGING else 0) for opcode in IoOpcode
    }
    return logs.pack_effects(admin, nvm)
