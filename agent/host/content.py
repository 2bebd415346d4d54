"""Looks at (or clears) a device's ends, as a program of its own: `python content.py look|clear|hold DEVICE`.

A child process since a read from a device whose target is away may wait for ever: a child can be killed, a thread not.
Nothing of the agent is imported, to start fast.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import sys

HELD = 3
"""Exit code of `hold` for a device that is in use."""
END_BYTES = 1 << 20
SAMPLE_BYTES = 4096
SAMPLES = 64
BTRFS_OFFSET = 64 << 10
BTRFS_MIRROR_OFFSET = 64 << 20


def look(path: str) -> dict[str, int | None]:
    """Offset of the first data found in both ends and in samples between, and the facts in a superblock."""
    with open(path, "rb", buffering=0) as device:  # noqa: PTH123 - see the module's first lines
        size = os.lseek(device.fileno(), 0, os.SEEK_END)
        facts: dict[str, int | None] = {"size": size, "first_data": _first_data(device.fileno(), size)}
        head = os.pread(device.fileno(), 2048, 0)
        btrfs = os.pread(device.fileno(), 4096, BTRFS_OFFSET)
    return facts | _ext(head) | _xfs(head) | _btrfs(btrfs)


def clear(path: str) -> None:
    """Zero both ends. O_EXCL: refused while the device is mounted or held."""
    descriptor = os.open(path, os.O_WRONLY | os.O_EXCL)
    size = os.lseek(descriptor, 0, os.SEEK_END)
    for offset in (0, max(0, size - END_BYTES)):
        length = min(END_BYTES, size - offset)
        if os.pwrite(descriptor, bytes(length), offset) != length:
            raise OSError("short write")
    os.fsync(descriptor)
    os.close(descriptor)


def hold(path: str) -> int:
    """0 when nobody holds the device, else HELD. O_EXCL: refused by the kernel when a filesystem or driver has it."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return HELD
    return 0


def _first_data(descriptor: int, size: int) -> int | None:
    places = [(0, END_BYTES), (max(0, size - END_BYTES), END_BYTES), (BTRFS_MIRROR_OFFSET, SAMPLE_BYTES)]
    step = size // SAMPLES // SAMPLE_BYTES * SAMPLE_BYTES
    places += [(index * step, SAMPLE_BYTES) for index in range(1, SAMPLES)]
    for offset, length in places:
        chunk = os.pread(descriptor, length, offset)
        if chunk.count(0) != len(chunk):
            return offset + len(chunk) - len(chunk.lstrip(b"\0"))
    return None


def _ext(head: bytes) -> dict[str, int | None]:
    """Linux kernel documentation, filesystems/ext4/globals: the superblock is at byte 1024, little-endian."""
    if len(head) < 2048 or head[1024 + 56 : 1024 + 58] != b"\x53\xef":
        return {}
    block = head[1024:]
    low, log_block = struct.unpack_from("<I", block, 4)[0], struct.unpack_from("<I", block, 24)[0]
    mounted_at, mounts = struct.unpack_from("<I", block, 44)[0], struct.unpack_from("<H", block, 52)[0]
    wide = struct.unpack_from("<I", block, 96)[0] & 0x80  # INCOMPAT_64BIT
    high = struct.unpack_from("<I", block, 336)[0] if wide else 0
    size = (high << 32 | low) * (1024 << min(log_block, 16))
    return {"filesystem_size": size, "never_mounted": int(mounted_at == 0 and mounts == 0)}


def _xfs(head: bytes) -> dict[str, int | None]:
    """XFS Algorithms & Data Structures, "Superblocks": at byte 0, big-endian; sb_inprogress (byte 126) is set by mkfs
    until all is written, and the kernel does not mount such a filesystem."""
    if head[:4] != b"XFSB" or len(head) < 128:
        return {}
    block_size, blocks = struct.unpack_from(">I", head, 4)[0], struct.unpack_from(">Q", head, 8)[0]
    return {"filesystem_size": blocks * block_size, "never_mounted": int(head[126] != 0)}


def _btrfs(block: bytes) -> dict[str, int | None]:
    """btrfs on-disk format, "Superblock": the magic at byte 64, written last by mkfs; total_bytes at 112. Whether it
    was ever mounted does not show."""
    if block[64:72] != b"_BHRfS_M":
        return {}
    return {"filesystem_size": struct.unpack_from("<Q", block, 112)[0], "never_mounted": 0}


if __name__ == "__main__":
    if sys.argv[1] == "clear":
        clear(sys.argv[2])
    elif sys.argv[1] == "hold":
        sys.exit(hold(sys.argv[2]))
    else:
        sys.stdout.write(json.dumps(look(sys.argv[2])))
