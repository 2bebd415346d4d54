"""Signatures that libblkid believes wherever the data of a file may lie: of RAIDs, volume managers, other filesystems.

The layouts are those of libblkid's probes (util-linux, libblkid/src/superblocks).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

Signature = Callable[[int], list[tuple[int, bytes]]]
"""By the size of the device in bytes: what is where."""


def _at_end(distance_bytes: int, data: bytes) -> Signature:
    return lambda size: [(size - distance_bytes, data)]


def _at(offset_bytes: int, data: bytes) -> Signature:
    return lambda _size: [(offset_bytes, data)]


def _md_old(size: int) -> list[tuple[int, bytes]]:
    data = bytearray(4096)
    struct.pack_into("<IIIII", data, 0, 0xA92B4EFC, 0, 90, 0, 992)
    return [((size & ~0xFFFF) - 0x10000, bytes(data))]


def _md_at_end(size: int) -> list[tuple[int, bytes]]:
    sector = (size // 512 - 16) & ~7
    data = bytearray(512)
    struct.pack_into("<II", data, 0, 0xA92B4EFC, 1)
    struct.pack_into("<Q", data, 144, sector)
    return [(sector * 512, bytes(data))]


def _zfs(size: int) -> list[tuple[int, bytes]]:
    uberblock = struct.pack("<QQQQ", 0x00BAB10C, 5000, 1, 1)
    labels = ((size & ~0x3FFFF) - 0x80000, (size & ~0x3FFFF) - 0x40000)
    return [(label + 0x20000 + index * 1024, uberblock) for label in labels for index in range(8)]


def _luks_second_header(offset: int) -> Signature:
    header = b"SKUL\xba\xbe" + struct.pack(">HQ", 2, 0x4000)
    return _at(offset, header.ljust(256, b"\0") + struct.pack(">Q", offset))


SIGNATURES: dict[str, Signature] = {
    "jmicron_raid_member": _at_end(512, b"JM\x01\0"),
    "linux_raid_member 0.90": _md_old,
    "linux_raid_member 1.0": _md_at_end,
    "isw_raid_member": _at_end(1024, b"Intel Raid ISM Cfg Sig. 1.0.00"),
    "lsi_mega_raid_member": _at_end(512, b"$XIDE$"),
    "promise_fasttrack_raid_member": _at_end(63 * 512, b"Promise Technology, Inc."),
    "hpt45x_raid_member": _at_end(11 * 512, struct.pack("<I", 0x5A7816F3)),
    "ddf_raid_member": _at_end(512, struct.pack(">I", 0xDE11DE11)),
    "zfs_member": _zfs,
    "VMFS_volume_member": _at(0x100000, struct.pack("<I", 0xC001D00D)),
    "VMFS": _at(0x200000, struct.pack("<I", 0x2FABF15E)),
    "crypto_LUKS": _luks_second_header(0x400000),
    "ufs": _at(0x40000 + 1372, struct.pack("<I", 0x00011954)),
    "iso9660": _at(0x8000, b"\1CD001"),
}
