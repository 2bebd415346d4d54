"""Identify data structures (NVM Express Base 2.0, section 5.17; NVM Command Set 1.0, section 4.1.5; NVMe-oF fields).

Only the fields that a controller over TCP fills or a host reads have a name; the rest of a structure is zero.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from agent.nvmf.layout import Layout, at

IDENTIFY_BYTES = 4096
NSID_LIST_ENTRIES = 1024


class ControllerType(IntEnum):
    IO = 1
    DISCOVERY = 2


class OptionalCommands(IntFlag):
    """ONCS: commands that a controller offers beyond the mandatory ones."""

    NONE = 0
    COMPARE = 1 << 0
    DATASET_MANAGEMENT = 1 << 2
    WRITE_ZEROES = 1 << 3


class OptionalEvents(IntFlag):
    """OAES, and the enable bits of the Asynchronous Event Configuration feature."""

    NONE = 0
    NAMESPACE_ATTRIBUTE = 1 << 8
    ANA_CHANGE = 1 << 11
    DISCOVERY_LOG = 1 << 31


class AnaState(IntEnum):
    """Asymmetric namespace access states (section 8.1.1)."""

    OPTIMIZED = 1
    NON_OPTIMIZED = 2
    INACCESSIBLE = 3
    PERSISTENT_LOSS = 4
    CHANGE = 15


CMIC_MULTI_PORT, CMIC_MULTI_CONTROLLER, CMIC_ANA = 1, 2, 8
LPA_COMMAND_EFFECTS, LPA_EXTENDED_DATA, LPA_MISCELLANEOUS = 2, 4, 32
SGLS_DWORD_ALIGNED, SGLS_KEYED, SGLS_OFFSET = 1, 1 << 2, 1 << 20
NSFEAT_ATOMIC, NSFEAT_OPTIMAL_PERFORMANCE = 1 << 1, 1 << 4
NMIC_SHARED = 1


@dataclass(frozen=True, kw_only=True)
class IdentifyController(Layout):
    """CNS 01h. `max_transfer_shift` (MDTS) is a power of two in units of 4 KiB, 0 is no limit."""

    SIZE = IDENTIFY_BYTES
    vendor: int = at(0, "H")
    subsystem_vendor: int = at(2, "H")
    serial: str = at(4, "20s", "")
    model: str = at(24, "40s", "")
    firmware: str = at(64, "8s", "")
    arbitration_burst: int = at(72, "B")
    ieee_oui: bytes = at(73, "3s", b"")
    cmic: int = at(76, "B")
    max_transfer_shift: int = at(77, "B")
    cntlid: int = at(78, "H")
    version: int = at(80, "I")
    events: int = at(92, "I")
    attributes: int = at(96, "I")
    controller_type: int = at(111, "B")
    optional_admin: int = at(256, "H")
    abort_limit: int = at(258, "B")
    event_limit: int = at(259, "B")
    firmware_updates: int = at(260, "B")
    log_attributes: int = at(261, "B")
    error_entries: int = at(262, "B")
    warning_temperature: int = at(266, "H")
    critical_temperature: int = at(268, "H")
    keep_alive_granularity: int = at(320, "H")
    ana_transition_s: int = at(342, "B")
    ana_capabilities: int = at(343, "B")
    ana_group_max: int = at(344, "I")
    ana_groups: int = at(348, "I")
    sq_entry_size: int = at(512, "B")
    cq_entry_size: int = at(513, "B")
    max_commands: int = at(514, "H")
    namespaces: int = at(516, "I")
    optional_commands: int = at(520, "H")
    volatile_write_cache: int = at(525, "B")
    sgl_support: int = at(536, "I")
    max_namespaces: int = at(540, "I")
    subnqn: str = at(768, "256s", "", pad=b"\0")
    command_capsule: int = at(1792, "I")
    response_capsule: int = at(1796, "I")
    capsule_data_offset: int = at(1800, "H")
    controller_attributes: int = at(1802, "B")
    max_sgl_descriptors: int = at(1803, "B")

    @property
    def max_transfer_bytes(self) -> int:
        """Largest transfer of one command, or 0."""
        return 4096 << self.max_transfer_shift if self.max_transfer_shift else 0


@dataclass(frozen=True, kw_only=True)
class IdentifyNamespace(Layout):
    """CNS 00h. Sizes are logical blocks; the preferred sizes and `atomic_write` are 0's based."""

    SIZE = IDENTIFY_BYTES
    size: int = at(0, "Q")
    capacity: int = at(8, "Q")
    used: int = at(16, "Q")
    features: int = at(24, "B")
    formats: int = at(25, "B")
    format: int = at(26, "B")
    shared: int = at(30, "B")
    deallocated: int = at(33, "B")
    atomic_write_power_fail: int = at(36, "H")
    atomic_compare: int = at(38, "H")
    boundary: int = at(46, "H")
    write_granularity: int = at(64, "H")
    write_alignment: int = at(66, "H")
    deallocate_granularity: int = at(68, "H")
    deallocate_alignment: int = at(70, "H")
    optimal_write: int = at(72, "H")
    ana_group: int = at(92, "I")
    nguid: bytes = at(104, "16s", b"")
    eui64: bytes = at(120, "8s", b"")
    block_shift: int = at(130, "B")

    @property
    def block_bytes(self) -> int:
        return 1 << self.block_shift


@dataclass(frozen=True, kw_only=True)
class IdentifyNamespaceIndependent(Layout):
    """CNS 08h."""

    SIZE = IDENTIFY_BYTES
    shared: int = at(1, "B")
    ana_group: int = at(4, "I")
    ready: int = at(14, "B")


@dataclass(frozen=True, kw_only=True)
class IdentifyControllerNvm(Layout):
    """CNS 06h, command set NVM: the largest Write Zeroes (4 KiB << shift) and the limits of Dataset Management."""

    SIZE = IDENTIFY_BYTES
    write_zeroes_shift: int = at(1, "B")
    deallocate_ranges: int = at(3, "B")
    deallocate_blocks: int = at(4, "I")
    deallocate_total: int = at(8, "Q")


def pack_nsid_list(nsids: Iterable[int]) -> bytes:
    """CNS 02h and the Changed Namespace List log page."""
    chosen = list(nsids)[:NSID_LIST_ENTRIES]
    return struct.pack(f"<{len(chosen)}I", *chosen).ljust(IDENTIFY_BYTES, b"\0")


def unpack_nsid_list(data: bytes) -> list[int]:
    nsids: list[int] = []
    for (nsid,) in struct.iter_unpack("<I", data[: len(data) & ~3]):
        if nsid == 0:
            break
        nsids.append(nsid)
    return nsids


class DescriptorType(IntEnum):
    """Type of an identifier in the Namespace Identification Descriptor list."""

    EUI64 = 1
    NGUID = 2
    UUID = 3
    COMMAND_SET = 4


def pack_descriptors(descriptors: Iterable[tuple[DescriptorType, bytes]]) -> bytes:
    """CNS 03h."""
    packed = b"".join(struct.pack("<BBxx", kind, len(value)) + value for kind, value in descriptors)
    return packed.ljust(IDENTIFY_BYTES, b"\0")


def unpack_descriptors(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, value) of each descriptor; stops at the first that does not fit."""
    offset = 0
    while offset + 4 <= len(data):
        kind, length = data[offset], data[offset + 1]
        value = data[offset + 4 : offset + 4 + length]
        if length == 0 or len(value) < length:
            return
        yield kind, value
        offset += 4 + length


def namespace_uuid(descriptors: bytes, nguid: bytes) -> str:
    """UUID of a namespace from its descriptors, else from its NGUID, else empty."""
    found = dict(unpack_descriptors(descriptors))
    raw = found.get(DescriptorType.UUID) or found.get(DescriptorType.NGUID) or nguid
    return str(uuid.UUID(bytes=raw)) if len(raw) == 16 and any(raw) else ""
