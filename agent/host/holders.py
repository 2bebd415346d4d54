"""Who has a block device: what the kernel built on it, mounts in other mount namespaces, programs that have it open.

For messages only: what is found may have ended meanwhile, and what another user's process does may not be seen.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from agent.errors import NotFound
from agent.host import device as devices
from agent.host import mount

PROC = Path("/proc")
_NAMED_MAX = 4


def holders(device: Path) -> list[str]:
    """Everyone who has `device` or one of its partitions, each as words that say how to end it. May block shortly."""
    numbers = dict(_numbers(device))
    return [*_built_on(numbers), *_mounts(numbers), *_programs(numbers)]


def describe(device: Path) -> str:
    """The same as one sentence; "" when nobody was found."""
    found = holders(device)
    more = f" and {len(found) - _NAMED_MAX} more" if len(found) > _NAMED_MAX else ""
    return f"{device} is in use by {', '.join(found[:_NAMED_MAX])}{more}" if found else ""


def programs(file: Path) -> list[str]:
    """The programs that have a regular file open, other than this one, in words. May block shortly."""
    try:
        found = file.stat()
    except OSError:
        return []
    wanted = (found.st_dev, found.st_ino)
    return [_program(process) for process in _processes()[1:] if wanted in _files(process)]


def has_lost(path: Path) -> bool:
    """Whether a program has a file open that was at `path` and has no name any more. May block shortly."""
    wanted = f"{path} (deleted)"
    return any(wanted in _names(process) for process in _processes()[1:])


def _names(process: Path) -> Iterator[str]:
    """What a process has open, as the kernel calls it."""
    with suppress(OSError):
        for descriptor in (process / "fd").iterdir():
            with suppress(OSError):
                yield os.readlink(descriptor)  # noqa: PTH115 - text


def _files(process: Path) -> Iterator[tuple[int, int]]:
    """Device and inode of everything that a process has open."""
    with suppress(OSError):
        for descriptor in (process / "fd").iterdir():
            with suppress(OSError):
                found = descriptor.stat()
                yield found.st_dev, found.st_ino


def _numbers(device: Path) -> Iterator[tuple[tuple[int, int], Path]]:
    """Number and folder in sysfs of the device and of each of its partitions."""
    major, minor = devices.number(device)
    folder = Path(f"/sys/dev/block/{major}:{minor}").resolve()
    yield (major, minor), folder
    for partition in folder.glob("*/partition"):
        major, minor = map(int, (partition.parent / "dev").read_text().split(":"))
        yield (major, minor), partition.parent


def _built_on(numbers: dict[tuple[int, int], Path]) -> Iterator[str]:
    for folder in numbers.values():
        for holder in sorted((folder / "holders").glob("*")):
            name, uuid = _read(holder / "dm/name"), _read(holder / "dm/uuid")
            if uuid.startswith("LVM-"):
                yield f"the LVM volume {name} (`vgchange --activate n` its group)"
            elif uuid.startswith("CRYPT-"):
                yield f"the encrypted device {name} (`cryptsetup close {name}`)"
            elif name:
                yield f"the device-mapper device {name} (`dmsetup remove {name}`)"
            elif (holder / "md").exists():
                yield f"the RAID {holder.name} (`mdadm --stop /dev/{holder.name}`)"
            else:
                yield f"{holder.name} (see `lsblk`)"
    for loop in Path("/sys/block").glob("loop*/loop/backing_file"):
        if _device_number(Path(_read(loop))) in numbers:
            yield f"the loop device {loop.parts[3]} (`losetup --detach /dev/{loop.parts[3]}`)"


def _mounts(numbers: dict[tuple[int, int], Path]) -> Iterator[str]:
    """Mounts in every mount namespace that can be seen, each namespace once."""
    seen = set[str]()
    for process in _processes():
        try:
            namespace = os.readlink(process / "ns/mnt")  # noqa: PTH115 - it leads nowhere
            if namespace in seen:
                continue
            table = mount.table(process / "mountinfo")
        except OSError:
            continue  # it ended, or is not ours to look at
        seen.add(namespace)
        where = "" if process.name == str(os.getpid()) else f" in the mount namespace of {_program(process)}"
        yield from (f"a mount at {found.target}{where} (unmount it)" for found in table if found.device in numbers)
    for line in _read(PROC / "swaps").splitlines()[1:]:
        if _device_number(Path(line.split()[0])) in numbers:
            yield f"swap (`swapoff {line.split()[0]}`)"


def _programs(numbers: dict[tuple[int, int], Path]) -> Iterator[str]:
    for process in _processes():
        try:
            files = list((process / "fd").iterdir())
        except OSError:
            continue
        if any(_device_number(file) in numbers for file in files):
            yield f"{_program(process)}, which has it open (end it)"


def _processes() -> list[Path]:
    """Our own first: what it sees is told without naming a process."""
    own = PROC / str(os.getpid())
    return [own, *(each for each in PROC.iterdir() if each.name.isdecimal() and each != own)]


def _program(process: Path) -> str:
    return f"process {process.name} ({_read(process / 'comm') or 'ended'})"


def _device_number(path: Path) -> tuple[int, int] | None:
    """Number of the block device at `path`, None when there is none. A descriptor in /proc leads to what is open."""
    try:
        return devices.number(path)
    except (NotFound, OSError):
        return None


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""
