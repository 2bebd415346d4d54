"""Looks at or clears a device, as a program of its own: `python content.py look|size|clear|hold|unlabel|zero DEVICE`.

A child process since a read from a device whose target is away may wait for ever: a child can be killed, a thread not.
Nothing of the agent is imported, to start fast.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import struct
import sys

HELD = 3
"""Exit code of `hold` and `unlabel` for a device that is in use."""
OTHER = 4
"""Exit code of `unlabel` for a device that does not carry that pool."""
UNSUPPORTED = 5
"""Exit code of `zero` for a device that cannot do it by itself."""
END_BYTES = 1 << 20
SAMPLE_BYTES = 4096
SAMPLES = 64
BTRFS_OFFSET = 64 << 10
BTRFS_MIRROR_OFFSET = 64 << 20
SUPER_BYTES = 4096
PAGE_BYTES_MAX = 1 << 16
LVSTORE = b"LVOLSTORE"
NAME_MAX = 64  # SPDK_LVS_NAME_MAX
BLKZEROOUT = 0x127F  # linux/fs.h
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2  # linux/falloc.h

Facts = dict[str, int | str | None]


def look(path: str) -> Facts:
    """Offset of the first data found in both ends and in samples between, and the facts in a superblock."""
    with open(path, "rb", buffering=0) as device:  # noqa: PTH123 - see the module's first lines
        size = os.lseek(device.fileno(), 0, os.SEEK_END)
        # What a target writes past the page cache does not change pages that were read before.
        os.posix_fadvise(device.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        facts: Facts = {"size": size, "first_data": _first_data(device.fileno(), size)}
        facts |= label(device.fileno(), size)
        return facts | _superblock(device.fileno())


def filesystem_bytes(path: str) -> int:
    """The size in the superblock, 0 when there is none that we know."""
    with open(path, "rb", buffering=0) as device:  # noqa: PTH123
        return int(_superblock(device.fileno()).get("filesystem_size") or 0)


def _superblock(descriptor: int) -> Facts:
    head = os.pread(descriptor, 2048, 0)
    return _ext(head) | _xfs(head) | _btrfs(os.pread(descriptor, 4096, BTRFS_OFFSET))


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


def unlabel(path: str, name: str, uuid: str) -> int:
    """Zero the metadata of the pool `name`, `uuid`, its label last: as long as that is there, this can be repeated.

    Returns OTHER, and writes nothing, when the device carries anything else. O_EXCL: what was looked at stays so.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_EXCL)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return HELD
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    found = label(descriptor, os.lseek(descriptor, 0, os.SEEK_END))
    end = found.get("label_bytes")
    if (found.get("label"), found.get("label_uuid")) != (name, uuid) or not isinstance(end, int):
        return OTHER
    _zero(descriptor, SUPER_BYTES, end)
    os.fsync(descriptor)
    _zero(descriptor, 0, SUPER_BYTES)
    os.fsync(descriptor)
    os.close(descriptor)
    return 0


def zero(path: str, start: int, end: int) -> int:
    """Have the device itself make a range read as zeroes; UNSUPPORTED when it cannot, or does not promise it.

    fallocate(2) on a block device: PUNCH_HOLE is a Write Zeroes that may deallocate, never a mere discard and never
    replaced by writing (linux/block/fops.c, BLKDEV_ZERO_NOFALLBACK).
    """
    import ctypes  # what looks at a device does without

    call = ctypes.CDLL(None, use_errno=True).fallocate64
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    descriptor = os.open(path, os.O_RDWR)
    if call(descriptor, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, start, end - start):
        code = ctypes.get_errno()
        if code in (errno.EOPNOTSUPP, errno.ENOTTY, errno.ENODEV):
            return UNSUPPORTED
        raise OSError(code, os.strerror(code))
    os.fsync(descriptor)
    os.close(descriptor)
    return 0


def label(descriptor: int, size: int) -> Facts:
    """Name and UUID of an SPDK lvstore and the bytes of its metadata; the name is "" when it was not made to the end.

    SPDK lib/blob/blobstore.h, version 3, little-endian: the super block is at byte 0, its type at 56. The attributes of
    the lvstore are those of its super blob, whose id has the index of its metadata page in the lower half.
    """
    head = os.pread(descriptor, SUPER_BYTES, 0)
    if head[:8] != b"SPDKBLOB" or len(head) < SUPER_BYTES or not head[56:].startswith(LVSTORE):
        return {}
    (blob,) = struct.unpack_from("<Q", head, 20)
    start, length = struct.unpack_from("<II", head, 48)
    (page_bytes,) = struct.unpack_from("<I", head, 92)
    page_bytes = page_bytes or SUPER_BYTES  # before version 3 there was one size
    if page_bytes > PAGE_BYTES_MAX or (start + length) * page_bytes > size:
        return {"label": "", "label_uuid": ""}
    facts: Facts = {"label": "", "label_uuid": "", "label_bytes": (start + length) * page_bytes}
    if blob & 0xFFFFFFFF < length:
        page = os.pread(descriptor, page_bytes, (start + (blob & 0xFFFFFFFF)) * page_bytes)
        if page[:8] == head[20:28]:
            attributes = _attributes(page[16:-8])
            facts |= {
                "label": attributes.get("name", "")[:NAME_MAX],
                "label_uuid": attributes.get("uuid", "")[:NAME_MAX],
            }
    return facts


def _attributes(descriptors: bytes) -> dict[str, str]:
    """Attributes among the descriptors of a metadata page: type (2: attribute), length, then what the type has."""
    found, offset = {}, 0
    while offset + 9 <= len(descriptors):
        kind, length = struct.unpack_from("<BI", descriptors, offset)
        if kind == 0 and length == 0:
            break
        if kind == 2:
            names, values = struct.unpack_from("<HH", descriptors, offset + 5)
            text = descriptors[offset + 9 : offset + 9 + names + values]
            found[text[:names].decode(errors="replace")] = text[names:].rstrip(b"\0").decode(errors="replace")
        offset += 5 + length
    return found


def _zero(descriptor: int, start: int, end: int) -> None:
    try:
        fcntl.ioctl(descriptor, BLKZEROOUT, struct.pack("<QQ", start, end - start))
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        for offset in range(start, end, END_BYTES):
            length = min(END_BYTES, end - offset)
            if os.pwrite(descriptor, bytes(length), offset) != length:
                raise OSError("short write") from None


def _first_data(descriptor: int, size: int) -> int | None:
    places = [(0, END_BYTES), (max(0, size - END_BYTES), END_BYTES), (BTRFS_MIRROR_OFFSET, SAMPLE_BYTES)]
    step = size // SAMPLES // SAMPLE_BYTES * SAMPLE_BYTES
    places += [(index * step, SAMPLE_BYTES) for index in range(1, SAMPLES)]
    for offset, length in places:
        chunk = os.pread(descriptor, length, offset)
        if chunk.count(0) != len(chunk):
            return offset + len(chunk) - len(chunk.lstrip(b"\0"))
    return None


def _ext(head: bytes) -> Facts:
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


def _xfs(head: bytes) -> Facts:
    """XFS Algorithms & Data Structures, "Superblocks": at byte 0, big-endian; sb_inprogress (byte 126) is set by mkfs
    until all is written, and the kernel does not mount such a filesystem."""
    if head[:4] != b"XFSB" or len(head) < 128:
        return {}
    block_size, blocks = struct.unpack_from(">I", head, 4)[0], struct.unpack_from(">Q", head, 8)[0]
    return {"filesystem_size": blocks * block_size, "never_mounted": int(head[126] != 0)}


def _btrfs(block: bytes) -> Facts:
    """btrfs on-disk format, "Superblock": the magic at byte 64, written last by mkfs; total_bytes at 112. Whether it
    was ever mounted does not show."""
    if block[64:72] != b"_BHRfS_M":
        return {}
    return {"filesystem_size": struct.unpack_from("<Q", block, 112)[0], "never_mounted": 0}


def main(action: str, *arguments: str) -> int:
    """Exit code. OSError when the device cannot be read or written."""
    if action == "clear":
        clear(*arguments)
    elif action == "size":
        sys.stdout.write(str(filesystem_bytes(*arguments)))
    elif action == "hold":
        return hold(*arguments)
    elif action == "unlabel":
        return unlabel(*arguments)
    elif action == "zero":
        path, start, end = arguments
        return zero(path, int(start), int(end))
    else:
        sys.stdout.write(json.dumps(look(*arguments)))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except OSError as failure:
        sys.exit(failure.strerror or "it failed")
