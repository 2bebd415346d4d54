"""Regular files as disks: made sparse when missing, and proven blank before a pool is put on them."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import struct
from pathlib import Path
from uuid import UUID

from agent.config.settings import FileDisk
from agent.errors import FailedPrecondition, InvalidArgument
from agent.host import content
from agent.model import Disk, DiskSpec, DiskStatus, Meta

BLOCK_BYTES = 4096
"""Logical block size of file disks: that of every file system they lie on, and of direct I/O."""

TRANSPORT = "file"
"""`Disk.status.transport` of a file disk."""

_EMBEDDED, _EMBEDDED_SIGNATURE = struct.Struct("<16s16s"), b"SPDKBLOBQUARRYLV"
"""How the super block of the embedded target begins (agent.embedded.lvs.layout); then comes the pool's UUID."""

_ID_PREFIX = "file-"
MIN_BYTES = 64 * 1024 * 1024
SCAN_BYTES = 1024 * 1024


def disk_id(path: Path, node: str) -> str:
    """Identity of a file disk: a file has no serial number, what stays is its real path on its node."""
    return _ID_PREFIX + hashlib.sha256(node.encode() + b"\0" + os.fsencode(path.resolve())).hexdigest()[:16]


def is_disk_id(name: str) -> bool:
    """Whether that is the identity of a file disk."""
    return name.startswith(_ID_PREFIX)


def prepare(disk: FileDisk, node: str) -> Disk:
    """The Disk of a file, which is created sparse when it is missing. An existing file is never changed.

    Raises InvalidArgument for anything but a regular file, and for sizes that make no pool.
    """
    if disk.size_bytes < MIN_BYTES:
        raise InvalidArgument(
            "file-disk", f"{disk.path} of {disk.size_bytes} bytes is too small", "give at least 64MiB"
        )
    size = _create_or_measure(disk)
    if size < MIN_BYTES:
        raise InvalidArgument(
            "file-disk", f"{disk.path} exists and has only {size} bytes", "remove it or name another file"
        )
    return Disk(
        meta=Meta(disk_id(disk.path, node)),
        spec=DiskSpec(claimed=True, tier_override=disk.tier),
        status=DiskStatus(
            node=node,
            path=str(disk.path.resolve()),
            model="regular file",
            transport=TRANSPORT,
            size_bytes=size,
            block_bytes=BLOCK_BYTES,
            tier=disk.tier,
            eligible=True,
        ),
    )


def pool_uuid(path: Path) -> str:
    """UUID of the pool that lies on the file, of a real or an embedded target; "" when none does. May block shortly."""
    try:
        with path.open("rb", buffering=0) as file:
            head = os.pread(file.fileno(), _EMBEDDED.size, 0)
            facts = content.label(file.fileno(), os.fstat(file.fileno()).st_size)
    except OSError:
        return ""
    signature, uuid = _EMBEDDED.unpack(head) if len(head) == _EMBEDDED.size else (b"", b"")
    return str(UUID(bytes=uuid)) if signature == _EMBEDDED_SIGNATURE else str(facts.get("label_uuid") or "")


def measure(path: Path) -> int | None:
    """Bytes of the file at `path`, None when there is none. May block shortly."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def inode(path: Path) -> tuple[int, int] | None:
    """Which file is at `path`: device and inode; None when there is none. May block shortly."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def require_blank(path: Path) -> None:
    """Raise FailedPrecondition unless the file holds nothing but zeroes. Holes are not read, everything else is.

    Called immediately before a pool is created: it is the last look before data would be destroyed.
    """
    with path.open("rb", buffering=0) as file:
        offset = _next_data(file.fileno(), 0)
        while offset is not None:
            file.seek(offset)
            data = file.read(SCAN_BYTES)
            if data.count(0) != len(data):
                raise FailedPrecondition(
                    f"{path} already carries data and is not a pool of ours; it is left alone. "
                    "Name another file, or remove this one if it is not needed"
                )
            offset = _next_data(file.fileno(), offset + len(data))


def _create_or_measure(disk: FileDisk) -> int:
    try:
        descriptor = os.open(disk.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return _measure(disk.path)
    except OSError as error:
        raise InvalidArgument(
            "file-disk", f"{disk.path} cannot be created: {error.strerror}", "check the path"
        ) from error
    try:
        os.ftruncate(descriptor, disk.size_bytes)
        os.fsync(descriptor)
    except OSError as error:
        disk.path.unlink(missing_ok=True)
        raise InvalidArgument(
            "file-disk", f"{disk.path} cannot be {disk.size_bytes} bytes large: {error.strerror}", "give a smaller size"
        ) from error
    finally:
        os.close(descriptor)
    return disk.size_bytes


def _measure(path: Path) -> int:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise InvalidArgument(
            "file-disk", f"{path} is not a regular file", "name a regular file or one that is missing"
        )
    if not os.access(path, os.R_OK | os.W_OK):
        raise InvalidArgument("file-disk", f"{path} cannot be read and written", "check its permissions")
    return found.st_size


def _next_data(descriptor: int, offset: int) -> int | None:
    """Offset of the next byte that is not in a hole, None when there is none (lseek(2), SEEK_DATA)."""
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise
