"""Log pages (NVM Express Base 2.0, section 5.16.1; discovery: NVMe over Fabrics, section 5.16.1.23)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agent.nvmf.identify import AnaState
from agent.nvmf.layout import Layout, at

HEALTH_BYTES = 512
FIRMWARE_BYTES = 512
EFFECTS_BYTES = 4096
SUPPORTED_BYTES = 1024
_ANA_HEADER = struct.Struct("<QHxxxxxx")
_ANA_GROUP = struct.Struct("<IIQB15x")
_DISCOVERY_HEADER = struct.Struct("<QQH1006x")
DISCOVERY_HEADER_BYTES = _DISCOVERY_HEADER.size

TRTYPE_TCP = 3
ADRFAM_IPV4, ADRFAM_IPV6 = 1, 2
SUBTYPE_NVME, SUBTYPE_CURRENT_DISCOVERY = 2, 3
DISCOVERY_SAME_LOG, DISCOVERY_PERSISTENT = 1, 2
"""Entry flags: all its addresses return this log page; it supports persistent connections."""
SECURE_CHANNEL_NOT_REQUIRED = 2


@dataclass(frozen=True, kw_only=True)
class Health(Layout):
    """SMART / Health Information. Temperature in kelvin, data in units of 512,000 bytes."""

    SIZE = HEALTH_BYTES
    critical_warning: int = at(0, "B")
    temperature: int = at(1, "H")
    available_spare: int = at(3, "B")
    spare_threshold: int = at(4, "B")
    percentage_used: int = at(5, "B")
    data_units_read: int = at(32, "Q")
    data_units_written: int = at(48, "Q")
    host_reads: int = at(64, "Q")
    host_writes: int = at(80, "Q")
    busy_minutes: int = at(96, "Q")
    power_cycles: int = at(112, "Q")
    power_on_hours: int = at(128, "Q")
    unsafe_shutdowns: int = at(144, "Q")
    media_errors: int = at(160, "Q")
    error_log_entries: int = at(176, "Q")
    warning_minutes: int = at(192, "I")
    critical_minutes: int = at(196, "I")


@dataclass(frozen=True, slots=True)
class AnaGroup:
    group: int
    state: AnaState
    nsids: tuple[int, ...] = ()


def pack_ana(groups: Sequence[AnaGroup], change_count: int = 0) -> bytes:
    """Asymmetric Namespace Access log page (0Ch)."""
    parts = [_ANA_HEADER.pack(change_count, len(groups))]
    for group in groups:
        parts.append(_ANA_GROUP.pack(group.group, len(group.nsids), change_count, group.state))
        parts.append(struct.pack(f"<{len(group.nsids)}I", *group.nsids))
    return b"".join(parts)


def ana_bytes(groups: int, namespaces: int) -> int:
    """Largest size of the ANA log page."""
    return _ANA_HEADER.size + groups * _ANA_GROUP.size + namespaces * 4


def unpack_ana(data: bytes) -> list[AnaGroup]:
    """Raises ValueError when the page is cut off or holds a state that does not exist."""
    try:
        _, count = _ANA_HEADER.unpack_from(data)
        offset = _ANA_HEADER.size
        groups: list[AnaGroup] = []
        for _ in range(count):
            group, namespaces, _, state = _ANA_GROUP.unpack_from(data, offset)
            offset += _ANA_GROUP.size
            nsids = struct.unpack_from(f"<{namespaces}I", data, offset)
            offset += 4 * namespaces
            groups.append(AnaGroup(group, AnaState(state & 0xF), nsids))
    except struct.error as error:
        raise ValueError("ANA log page is cut off") from error
    return groups


@dataclass(frozen=True, kw_only=True)
class DiscoveryEntry(Layout):
    """One transport address of one subsystem."""

    SIZE = 1024
    transport: int = at(0, "B", TRTYPE_TCP)
    address_family: int = at(1, "B", ADRFAM_IPV4)
    subtype: int = at(2, "B", SUBTYPE_NVME)
    requirements: int = at(3, "B", SECURE_CHANNEL_NOT_REQUIRED)
    port_id: int = at(4, "H")
    cntlid: int = at(6, "H", 0xFFFF)
    admin_queue_size: int = at(8, "H", 128)
    flags: int = at(10, "H")
    service: str = at(32, "32s", "")
    subnqn: str = at(256, "256s", "", pad=b"\0")
    address: str = at(512, "256s", "")


def pack_discovery(entries: Sequence[DiscoveryEntry], generation: int) -> bytes:
    """Discovery log page (70h)."""
    header = _DISCOVERY_HEADER.pack(generation, len(entries), 0)
    return header + b"".join(entry.pack() for entry in entries)


def unpack_discovery_header(data: bytes) -> tuple[int, int]:
    """(generation counter, number of records)."""
    generation, count, _ = _DISCOVERY_HEADER.unpack_from(data)
    return generation, count


def pack_firmware(revision: str) -> bytes:
    """Firmware Slot Information (03h): one slot, active."""
    return struct.pack("<B7x8s", 1, revision.encode("ascii").ljust(8)).ljust(FIRMWARE_BYTES, b"\0")


def pack_effects(admin: Mapping[int, int], nvm: Mapping[int, int]) -> bytes:
    """Commands Supported and Effects (05h): opcode -> effects dword."""
    page = bytearray(EFFECTS_BYTES)
    for base, effects in ((0, admin), (1024, nvm)):
        for opcode, effect in effects.items():
            struct.pack_into("<I", page, base + 4 * opcode, effect)
    return bytes(page)


def pack_supported(identifiers: Iterable[int]) -> bytes:
    """Supported Log Pages (00h), and Feature Identifiers Supported and Effects (12h) when given 1024 bytes."""
    page = bytearray(SUPPORTED_BYTES)
    for identifier in identifiers:
        struct.pack_into("<I", page, 4 * identifier, 1)
    return bytes(page)
