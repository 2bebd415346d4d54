"""Loop devices: a regular file seen as a block device, through `losetup`.

A device is matched to its file by device and inode number, never by name alone: names in /dev are reused, files are
renamed, and two files may have had the same name.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.errors import Busy, CommandFailed, FailedPrecondition, NotFound
from agent.host import mount, process
from agent.host.device import is_readonly, set_readonly

LOSETUP_TIMEOUT_S = 15.0
LOCK_FILE = Path("/run/lock/quarry-loop.lock")
LOOP_CONTROL = "/dev/loop-control"
LOCK_TIMEOUT_S = 15.0
DETACH_TIMEOUT_S = 10.0
_POLL_S = 0.01
_DELETED = " (deleted)"
_COLUMNS = "NAME,BACK-FILE,BACK-INO,BACK-MAJ:MIN,OFFSET,SIZELIMIT"


@dataclass(frozen=True, slots=True)
class LoopDevice:
    """`file` is the path at the time of attaching; the kernel adds " (deleted)", which is taken off here."""

    path: Path
    file: Path
    deleted: bool
    identity: tuple[int, int, int]
    """Device (major, minor) and inode of the file."""
    whole: bool
    """It shows the whole file: no offset, no size limit."""


async def devices() -> list[LoopDevice]:
    """Every loop device in use on this machine."""
    done = await process.run(["losetup", "--json", "--list", "--output", _COLUMNS], timeout_s=LOSETUP_TIMEOUT_S)
    return parse(done.stdout)


def parse(text: str) -> list[LoopDevice]:
    """The JSON of `losetup --list` (empty when there are none)."""
    found = []
    for entry in json.loads(text)["loopdevices"] if text.strip() else ():
        name = str(entry["back-file"] or "")
        major, _, minor = str(entry["back-maj:min"] or "0:0").strip().partition(":")
        found.append(
            LoopDevice(
                path=Path(entry["name"]),
                file=Path(name.removesuffix(_DELETED)),
                deleted=name.endswith(_DELETED),
                identity=(int(major), int(minor), int(entry["back-ino"] or 0)),
                whole=not int(entry["offset"] or 0) and not int(entry["sizelimit"] or 0),
            )
        )
    return found


async def find(file: Path) -> Path | None:
    """The device of a file, or None. A file that is gone has none: see `find_leftovers`."""
    wanted = _identity(file)
    if wanted is None:
        return None
    return next((device.path for device in await devices() if device.whole and device.identity == wanted), None)


def is_of(device: LoopDevice, file: Path) -> bool:
    """Whether it shows this file, or the one that was there before that was deleted."""
    return device.identity == _identity(file) if not device.deleted else device.file == _real(file)


async def find_leftovers(file: Path) -> list[Path]:
    """Devices attached under this path whose file has been deleted or replaced since."""
    current = await find(file)
    name = _real(file)
    return [device.path for device in await devices() if device.file == name and device.path != current]


async def attach(file: Path) -> Path:
    """The loop device of a file, attached now unless it is already. However many ask at once, they get the same one.

    NotFound when there is no such file; FailedPrecondition when it is not a regular one or loop devices are missing.
    """
    _check_file(file)
    async with _machine_lock():
        existing = await find(file)
        if existing is not None:
            return existing
        # Buffered: the embedded target writes the same file through the page cache, both must see one truth.
        argv = ["losetup", "--find", "--show", "--nooverlap", "--direct-io=off", "--", str(file)]
        try:
            done = await process.run(argv, timeout_s=LOSETUP_TIMEOUT_S)
        except CommandFailed as error:
            if not os.access(LOOP_CONTROL, os.F_OK):
                raise FailedPrecondition("this kernel has no loop devices: `modprobe loop`") from error
            _check_file(file)  # the volume may have been deleted meanwhile
            raise
        return Path(done.stdout.strip())


async def rescan(device: Path) -> None:
    """Take over a changed size of the file."""
    await process.run(["losetup", "--set-capacity", str(device)], timeout_s=LOSETUP_TIMEOUT_S)


async def detach(device: Path) -> None:
    """Detach and wait until the device is free; detached already: fine. Busy while something has it open.

    FailedPrecondition, with nothing changed, while it is mounted: waiting would not end, and hold up the machine.
    The kernel only promises to detach at the last close (it sets autoclear), so the state is read back.
    """
    async with _machine_lock():
        before = await _attached(device)
        if before is None:
            return
        if used := mount.uses(device):
            raise FailedPrecondition(f"{device} is in use at {used[0].target}; unmount it first")
        if is_readonly(device):  # the kernel keeps the flag for whoever gets the device next
            await set_readonly(device, False)
        try:
            await process.run(["losetup", "--detach", str(device)], timeout_s=LOSETUP_TIMEOUT_S)
        except CommandFailed:
            if await _attached(device) is None:
                return
            raise
        deadline = time.monotonic() + DETACH_TIMEOUT_S
        while await _attached(device) == before:
            if time.monotonic() > deadline:
                raise Busy(f"{device} is still open somewhere: it is detached when that ends")
            await asyncio.sleep(_POLL_S)


def _check_file(file: Path) -> None:
    if not file.exists():
        raise NotFound("file", str(file))
    if not file.is_file():
        raise FailedPrecondition(f"{file} is not a regular file, so it cannot be seen through a loop device")


def _identity(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return os.major(found.st_dev), os.minor(found.st_dev), found.st_ino


def _real(file: Path) -> Path:
    return Path(os.path.realpath(file))


async def _attached(device: Path) -> LoopDevice | None:
    return next((found for found in await devices() if found.path == device), None)


@asynccontextmanager
async def _machine_lock() -> AsyncIterator[None]:
    """One attach or detach at a time on the machine, across processes; the kernel lets go when we die."""
    try:
        LOCK_FILE.parent.mkdir(0o755, parents=True, exist_ok=True)  # made at boot as a rule; a small system has none
        descriptor = os.open(LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        remedy = "; loop devices need root" if error.errno in (errno.EACCES, errno.EPERM) else ""
        raise FailedPrecondition(f"{LOCK_FILE}: {error.strerror}{remedy}") from error
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise Busy("another process is attaching loop devices")
            await asyncio.sleep(_POLL_S)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
