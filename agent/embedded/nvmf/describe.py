"""What the embedded target's controllers answer to Identify, with the values of the real target."""

from __future__ import annotations

from typing import Any

from agent.embedded.nvmf.controller import Controller
from agent.embedded.nvmf.request import Refusal
from agent.embedded.nvmf.settings import ASYNC_EVENTS_MAX, FIRMWARE
from agent.embedded.nvmf.subsystem import Namespace
from agent.nvmf import identify as ids
from agent.nvmf.command import CQE_BYTES, SQE_BYTES, Cns
from agent.nvmf.identify import (
    AnaState,
    ControllerType,
    DescriptorType,
    IdentifyController,
    IdentifyControllerNvm,
    IdentifyNamespace,
    IdentifyNamespaceIndependent,
    OptionalCommands,
    OptionalEvents,
)
from agent.nvmf.status import Status

_VENDOR = 0x8086
_OUI = bytes((0xE4, 0xD2, 0x5C))
_NVM_COMMAND_SET = 0


def identify(controller: Controller, cns: int, nsid: int, csi: int) -> bytes:
    """4096 bytes for Identify; raises Refusal for what is not offered."""
    if cns == Cns.CONTROLLER:
        return _controller(controller).pack()
    if controller.subsystem.is_discovery:
        raise Refusal(Status.INVALID_FIELD)
    if cns in (Cns.ACTIVE_NAMESPACES, Cns.ACTIVE_NAMESPACES_COMMAND_SET):
        return _active(controller, nsid, csi if cns == Cns.ACTIVE_NAMESPACES_COMMAND_SET else _NVM_COMMAND_SET)
    if cns == Cns.CONTROLLER_COMMAND_SET:
        return _command_set(controller, csi)
    if cns == Cns.COMMAND_SETS:
        return b"\x01".ljust(ids.IDENTIFY_BYTES, b"\0")
    if cns in (Cns.NAMESPACE, Cns.NAMESPACE_DESCRIPTORS, Cns.NAMESPACE_COMMAND_SET, Cns.NAMESPACE_INDEPENDENT):
        return _one_namespace(controller, cns, nsid)
    raise Refusal(Status.INVALID_FIELD)


def _one_namespace(controller: Controller, cns: int, nsid: int) -> bytes:
    if not 0 < nsid <= controller.subsystem.options.max_namespaces:
        raise Refusal(Status.INVALID_NAMESPACE)
    namespace = controller.subsystem.namespaces.get(nsid)
    if namespace is None:
        if cns == Cns.NAMESPACE_DESCRIPTORS:
            raise Refusal(Status.INVALID_FIELD)
        if cns == Cns.NAMESPACE_COMMAND_SET:
            raise Refusal(Status.INVALID_NAMESPACE)
        return bytes(ids.IDENTIFY_BYTES)
    if cns == Cns.NAMESPACE:
        return _namespace(controller, namespace).pack()
    if cns == Cns.NAMESPACE_DESCRIPTORS:
        return ids.pack_descriptors(
            (kind, value)
            for kind, value in (
                (DescriptorType.EUI64, namespace.eui64),
                (DescriptorType.NGUID, namespace.nguid),
                (DescriptorType.UUID, namespace.uuid.bytes),
            )
            if any(value)
        )
    if cns == Cns.NAMESPACE_INDEPENDENT:
        return IdentifyNamespaceIndependent(shared=ids.NMIC_SHARED, ana_group=namespace.ana_group, ready=1).pack()
    return bytes(ids.IDENTIFY_BYTES)


def _controller(controller: Controller) -> IdentifyController:
    subsystem, settings = controller.subsystem, controller.settings
    common = IdentifyController(
        firmware=FIRMWARE,
        max_transfer_shift=(settings.max_io_size // 4096).bit_length() - 1,
        cntlid=controller.cntlid,
        version=controller.registers.version,
        event_limit=ASYNC_EVENTS_MAX - 1,
        log_attributes=ids.LPA_EXTENDED_DATA,
        error_entries=127,
        max_commands=settings.max_queue_depth,
        sgl_support=ids.SGLS_DWORD_ALIGNED | ids.SGLS_KEYED | ids.SGLS_OFFSET,
        warning_temperature=0x157,
        critical_temperature=0x175,
        subnqn=subsystem.nqn,
        controller_type=ControllerType.DISCOVERY,
        events=OptionalEvents.DISCOVERY_LOG,
    )
    if subsystem.is_discovery:
        return common
    return IdentifyController(**{**vars(common), **_io_controller(controller)})


def _io_controller(controller: Controller) -> dict[str, Any]:
    """The fields in which an I/O controller differs from a discovery controller."""
    options, settings = controller.subsystem.options, controller.settings
    ana = options.ana_reporting
    return {
        "vendor": _VENDOR,
        "subsystem_vendor": _VENDOR,
        "ieee_oui": _OUI,
        "serial": options.serial,
        "model": options.model,
        "arbitration_burst": 6,
        "cmic": ids.CMIC_MULTI_PORT | ids.CMIC_MULTI_CONTROLLER | (ids.CMIC_ANA if ana else 0),
        "events": OptionalEvents.NAMESPACE_ATTRIBUTE | (OptionalEvents.ANA_CHANGE if ana else 0),
        "attributes": 1,  # 128-bit host identifier
        "controller_type": ControllerType.IO,
        "abort_limit": 3,
        "firmware_updates": 1 | 1 << 1,  # one slot, read-only
        "log_attributes": ids.LPA_EXTENDED_DATA | ids.LPA_COMMAND_EFFECTS | ids.LPA_MISCELLANEOUS,
        "keep_alive_granularity": settings.kas,
        "ana_transition_s": 10 if ana else 0,
        # optimized, non-optimized, inaccessible; the group of a namespace does not change while it is attached
        "ana_capabilities": 0b1000111 if ana else 0,
        "ana_group_max": options.max_namespaces if ana else 0,
        "ana_groups": options.max_namespaces if ana else 0,
        "max_namespaces": options.max_namespaces if ana else 0,
        "sq_entry_size": 0x66,
        "cq_entry_size": 0x44,
        "namespaces": options.max_namespaces,
        "optional_commands": _optional_commands(controller),
        "volatile_write_cache": 1 | 2 << 1,  # present, Flush takes no broadcast namespace
        "command_capsule": (SQE_BYTES + settings.in_capsule_data_size) // 16,
        "response_capsule": CQE_BYTES // 16,
        "max_sgl_descriptors": 1,
    }


def _optional_commands(controller: Controller) -> OptionalCommands:
    """Commands that every bdev under the subsystem supports."""
    offered = OptionalCommands.COMPARE
    bdevs = [namespace.bdev for namespace in controller.subsystem.namespaces.values()]
    if all("unmap" in bdev.supported_io for bdev in bdevs):
        offered |= OptionalCommands.DATASET_MANAGEMENT
    if all("write_zeroes" in bdev.supported_io for bdev in bdevs):
        offered |= OptionalCommands.WRITE_ZEROES
    return offered & ~controller.settings.masked


def _namespace(controller: Controller, namespace: Namespace) -> IdentifyNamespace:
    bdev, hints = namespace.bdev, namespace.bdev.hints
    ana = controller.subsystem.options.ana_reporting
    hidden = controller.ana_state(namespace) is AnaState.INACCESSIBLE
    granularity = max(hints.preferred_write_granularity, 1) - 1
    return IdentifyNamespace(
        size=bdev.num_blocks,
        capacity=bdev.num_blocks,
        used=0 if hidden else bdev.num_blocks,
        features=ids.NSFEAT_OPTIMAL_PERFORMANCE | ids.NSFEAT_ATOMIC,
        shared=ids.NMIC_SHARED,
        atomic_write_power_fail=granularity,
        write_granularity=granularity,
        write_alignment=max(hints.preferred_write_alignment, 1) - 1,
        deallocate_granularity=max(hints.preferred_unmap_granularity, 1) - 1,
        deallocate_alignment=max(hints.preferred_unmap_alignment, 1) - 1,
        optimal_write=(hints.optimal_write_size or controller.settings.max_io_size // bdev.block_size) - 1,
        ana_group=namespace.ana_group if ana else 0,
        nguid=namespace.nguid,
        eui64=namespace.eui64,
        block_shift=bdev.block_size.bit_length() - 1,
    )


def _active(controller: Controller, after: int, csi: int) -> bytes:
    if after >= 0xFFFFFFFE:
        raise Refusal(Status.INVALID_NAMESPACE)
    if csi != _NVM_COMMAND_SET:
        raise Refusal(Status.INVALID_FIELD)
    return ids.pack_nsid_list(nsid for nsid in sorted(controller.subsystem.namespaces) if nsid > after)


def _command_set(controller: Controller, csi: int) -> bytes:
    if csi != _NVM_COMMAND_SET:
        return bytes(ids.IDENTIFY_BYTES)
    options = controller.subsystem.options
    ranges = 1 if options.dmrsl else 0
    limits = IdentifyControllerNvm(
        write_zeroes_shift=options.wzsl,
        deallocate_ranges=ranges,
        deallocate_blocks=options.dmrsl,
        deallocate_total=options.dmrsl * ranges,
    )
    return limits.pack()
