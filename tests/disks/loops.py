"""Loop devices on sparse files, as disks that can be pulled out, put back, grown and written to."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from pathlib import Path

GIB = 1 << 30
LOOP_SET_STATUS64, LOOP_GET_STATUS64 = 0x4C04, 0x4C05  # linux/loop.h
_OFFSET_AT = 24


def missing() -> str:
    """Why there can be none here; "" when there can."""
    if os.geteuid() != 0 or shutil.which("losetup") is None or not Path("/dev/loop-control").exists():
        return "needs root, losetup and loop devices"
    return ""


class LoopDisk:
    """A file and, while it is plugged in, the loop device on it."""

    def __init__(self, file: Path, size_bytes: int = 2 * GIB) -> None:
        self.file = file
        with file.open("ab") as opened:
            opened.truncate(size_bytes)
        self.device = ""
        self._left: list[str] = []

    @property
    def name(self) -> str:
        return self.device.removeprefix("/dev/")

    def plug(self) -> str:
        """Attach to the next free loop device, which differs from the former one when that is still in use."""
        self.device = _run("losetup", "--find", "--show", str(self.file))
        return self.device

    def pull(self) -> None:
        """Surprise removal: the device is empty from now on, even for who has it open. Then the kernel says so."""
        self._set_offset(self.file.stat().st_size)
        self.tell("remove")
        self._left.append(self.device)
        self.device = ""

    def put_back(self) -> None:
        """Plug in again where it was pulled last, under the same name."""
        self.device = self._left.pop()
        self._set_offset(0)
        self.tell("add")

    def grow(self, size_bytes: int) -> None:
        os.truncate(self.file, size_bytes)
        _run("losetup", "--set-capacity", self.device)

    def tell(self, action: str = "change") -> None:
        """Have the kernel send an event of the device."""
        Path(f"/sys/block/{self.name}/uevent").write_text(action)

    def write(self, offset: int, data: bytes) -> None:
        """As `dd` does: without asking who else has the device."""
        with Path(self.device).open("r+b", buffering=0) as opened:
            opened.seek(offset)
            opened.write(data)
            os.fsync(opened.fileno())

    def read(self, offset: int, length: int) -> bytes:
        with Path(self.device).open("rb", buffering=0) as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            opened.seek(offset)
            return opened.read(length)

    def is_blank(self) -> bool:
        """Whether all of it reads as zeroes; holes of the file are not read."""
        size = self.file.stat().st_size
        with self.file.open("rb") as opened:
            offset = 0
            while True:
                try:
                    offset = os.lseek(opened.fileno(), offset, os.SEEK_DATA)
                except OSError:
                    return True
                chunk = os.pread(opened.fileno(), 1 << 20, offset)
                if chunk.count(0) != len(chunk):
                    return False
                offset += len(chunk)
                if offset >= size:
                    return True

    def close(self) -> None:
        for device in {self.device, *self._left} - {""}:
            subprocess.run(["losetup", "--detach", device], check=False, capture_output=True)

    def _set_offset(self, offset: int) -> None:
        with Path(self.device).open("r+b", buffering=0) as opened:
            info = bytearray(232)
            fcntl.ioctl(opened, LOOP_GET_STATUS64, info)
            struct.pack_into("<Q", info, _OFFSET_AT, offset)
            fcntl.ioctl(opened, LOOP_SET_STATUS64, info)


def _run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
