"""Block devices as the kernel knows them: number, size, and the right to use them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from agent.errors import FailedPrecondition, NotFound
from agent.host import process

CAP_SYS_ADMIN = 21  # linux/capability.h
CAP_SYS_RESOURCE = 24


def number(device: Path) -> tuple[int, int]:
    """Major and minor of a block device. NotFound when there is none at that path."""
    try:
        found = device.stat()
    except FileNotFoundError:
        raise NotFound("block device", str(device)) from None
    if not stat.S_ISBLK(found.st_mode):
        raise NotFound("block device", str(device))
    return os.major(found.st_rdev), os.minor(found.st_rdev)


def exists(number: tuple[int, int]) -> bool:
    """Whether the kernel has a block device of this major and minor number."""
    return Path(f"/sys/dev/block/{number[0]}:{number[1]}").exists()


def by_number(number: tuple[int, int]) -> Path | None:
    """The device of this major and minor number; None when the kernel has none (any more)."""
    folder = Path(f"/sys/dev/block/{number[0]}:{number[1]}")
    return Path("/dev") / folder.resolve().name.replace("!", "/") if folder.exists() else None


def size_bytes(device: Path) -> int:
    """Size from sysfs rather than by BLKGETSIZE64: opening a device may wait for I/O to a target that is away."""
    major, minor = number(device)
    try:
        return int(Path(f"/sys/dev/block/{major}:{minor}/size").read_text()) * 512
    except FileNotFoundError:
        raise NotFound("block device", str(device)) from None


def boot_id() -> str:
    """Changes with each start of the kernel: device numbers from before mean nothing then."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


async def set_readonly(device: Path, readonly: bool) -> None:
    """Make the kernel refuse (or accept) writes to the whole device. A read-only bind mount of its node does not."""
    await process.run(["blockdev", "--setro" if readonly else "--setrw", str(device)], timeout_s=10)


def is_readonly(device: Path) -> bool:
    major, minor = number(device)
    return Path(f"/sys/dev/block/{major}:{minor}/ro").read_text().strip() == "1"


def require_admin() -> None:
    """FailedPrecondition unless this process may mount (CAP_SYS_ADMIN)."""
    if not has_capability(CAP_SYS_ADMIN):
        raise FailedPrecondition(
            "attaching and mounting volumes needs root: run the agent as root (in a container: privileged)"
        )


def has_capability(bit: int) -> bool:
    """Whether this process has an effective capability (capabilities(7)); root in a container may lack any."""
    status = Path("/proc/self/status").read_text()
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> bit & 1)
