"""Mounts: what is mounted where (proc(5), /proc/pid/mountinfo), and making it so."""

from __future__ import annotations

import logging
import os
import re
import stat
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from agent.errors import AlreadyExists, Busy, CommandFailed, FailedPrecondition, NotFound
from agent.host import device as devices
from agent.host import mount_options, mounter, process
from agent.host.paths import CheckedPath

MOUNT_TIMEOUT_S = 60.0
THAW_TIMEOUT_S = 15.0
MOUNTINFO = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(r"\\([0-7]{3})")
_STACKED_MAX = 32
_Value = TypeVar("_Value")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo. `device` is major and minor; `root` the directory (or file) of it that is visible.

    btrfs has a made-up number there; `table` puts that of its block device in its place.
    """

    id: int
    device: tuple[int, int]
    root: str
    target: Path
    options: frozenset[str]
    """Of this mount (ro, nosuid, ...)."""
    fs_type: str
    source: str
    super_options: frozenset[str]
    """Of the filesystem, shared by all its mounts."""

    @property
    def readonly(self) -> bool:
        return "ro" in self.options or "ro" in self.super_options


def parse(text: str) -> list[Mount]:
    """The lines of a mountinfo file, in order: of several mounts at one place the last is the visible one."""
    mounts = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields, tail = before.split(" "), after.split(" ")
        if not separator or len(fields) < 6 or len(tail) < 2:
            continue
        major, _, minor = fields[2].partition(":")
        mounts.append(
            Mount(
                id=int(fields[0]),
                device=(int(major), int(minor)),
                root=_unescape(fields[3]),
                target=Path(_unescape(fields[4])),
                options=frozenset(fields[5].split(",")),
                fs_type=tail[0],
                source=_unescape(tail[1]),
                super_options=frozenset(tail[2].split(",") if len(tail) > 2 else ()),
            )
        )
    return mounts


def table(mountinfo: Path = MOUNTINFO) -> list[Mount]:
    """All mounts of this process's namespace, or of that of the process whose file is given."""
    mounts = parse(mountinfo.read_bytes().decode(errors="surrogateescape"))
    return [_on_block_device(mount) if mount.fs_type == "btrfs" else mount for mount in mounts]


def at(target: Path) -> Mount | None:
    """The visible mount whose mount point is exactly `target`."""
    return next((mount for mount in reversed(table()) if mount.target == target), None)


def uses(device: Path) -> list[Mount]:
    """Every mount of the filesystem on a device, and every bind mount of its device node."""
    return uses_of(devices.number(device))


def uses_of(number: tuple[int, int]) -> list[Mount]:
    """As `uses`, for a device by its major and minor number."""
    return [mount for mount in table() if mount.device == number or _is_node_of(mount, number)]


def is_node(target: Path, device: Path) -> bool:
    """Whether `target` is a bind mount of the node of `device`."""
    mount = at(target)
    return mount is not None and _is_node_of(mount, devices.number(device))


async def ensure_mounted(device: Path, target: CheckedPath, fs_type: str, options: Sequence[str]) -> None:
    """Mount the filesystem on `device` at `target`. There already, in this way: fine.

    AlreadyExists: it is there in another way. FailedPrecondition: something else is there.
    """
    existing = at(target.real)
    if existing is None:
        with _opened(target) as name:
            # However long it takes: the kernel replays the journal, and would have to begin that again.
            if await _run("mount", fs_type, str(device), name, *options, timeout_s=None):
                log.warning("the filesystem on %s had been left frozen without a mount: thawed", device)
        return
    number = devices.number(device)
    if _is_node_of(existing, number):
        raise AlreadyExists("mount", str(target), "as a raw block device, not as a filesystem")
    if existing.device != number or existing.root != "/":
        raise FailedPrecondition(f"{target} is in use: {existing.source} is mounted there")
    if existing.fs_type != fs_type:
        raise AlreadyExists("mount", str(target), f"as {existing.fs_type}, not as {fs_type}")
    if how := mount_options.difference(existing.options, options):
        raise AlreadyExists("mount", str(target), f"as {how}")
    if existing.readonly and not mount_options.is_readonly(options):
        raise FailedPrecondition(
            f"{target} is mounted read-only already, which it was not meant to be: unstage it first"
        )


async def ensure_bound(source: CheckedPath, target: CheckedPath, *, readonly: bool) -> None:
    """Make the filesystem mounted at `source` visible at `target` too. Errors as `ensure_mounted`."""
    wanted = at(source.real)
    if wanted is None:
        raise FailedPrecondition(f"nothing is mounted at {source}: stage the volume first")
    existing = at(target.real)
    if existing is None:
        if wanted.readonly and not readonly:
            raise FailedPrecondition(f"{source} is mounted read-only, so it cannot be published writable")
        with _opened(source) as origin, _opened(target) as name:
            await _run("bind", origin, name, "ro" if readonly else "rw")
        return
    if _is_node_of(existing, wanted.device):
        raise AlreadyExists("mount", str(target), "as a raw block device, not as a filesystem")
    if (existing.device, existing.root) != (wanted.device, wanted.root):
        raise FailedPrecondition(f"{target} is in use: {existing.source} is mounted there")
    if ("ro" in existing.options) != readonly:
        raise AlreadyExists("mount", str(target), "as writable, not read-only" if readonly else "as read-only")


async def ensure_node_bound(device: Path, target: CheckedPath) -> None:
    """Bind the node of a block device on the file `target`. Errors as `ensure_mounted`."""
    existing, number = at(target.real), devices.number(device)
    if existing is None:
        with _opened(target) as name:
            await _run("bind", str(device), name, "rw")
    elif existing.device == number:
        raise AlreadyExists("mount", str(target), "as a filesystem, not as a raw block device")
    elif not _is_node_of(existing, number):
        raise FailedPrecondition(f"{target} is in use: {existing.source}{existing.root} is mounted there")


async def ensure_unmounted(target: CheckedPath, check: Callable[[Mount], Awaitable[None]] | None = None) -> None:
    """Unmount everything at exactly `target`, also mounts on top of each other; nothing there: fine.

    `check` is asked before each, and raises when it is to stay.

    A filesystem that its user has left frozen is thawed before its last mount goes. FailedPrecondition while a process
    uses it.
    """
    for _ in range(_STACKED_MAX):
        if (found := at(target.real)) is None:
            return
        if check is not None:
            await check(found)
        which = "last" if sum(each.device == found.device for each in table()) == 1 else "other"
        with _entered(target, target.parent()) as parent:
            try:
                if await _run("unmount", f"/proc/{os.getpid()}/fd/{parent}", target.parts[-1], which):
                    log.warning("%s at %s had been left frozen: thawed before it was unmounted", found.source, target)
            except CommandFailed as error:
                if at(target.real) is not None:
                    raise FailedPrecondition(f"{target} cannot be unmounted: {error.stderr.strip()}") from error
    if at(target.real) is not None:
        raise FailedPrecondition(f"more than {_STACKED_MAX} mounts lie on top of each other at {target}")


async def thaw_unseen(device: Path) -> bool:
    """Thaw a filesystem that lives on without any mount (fsfreeze(8), then unmounted); False when there is none.

    It ends by that. Only for a device that is in use by nobody who is seen.
    """
    return await _run("thaw", str(device), "ro", "rw", timeout_s=THAW_TIMEOUT_S)


def _opened(path: CheckedPath) -> AbstractContextManager[str]:
    return _entered(path, path.opened())


@contextmanager
def _entered(path: CheckedPath, opening: AbstractContextManager[_Value]) -> Iterator[_Value]:
    """As `opening`, in errors of ours: `path` was there when it was checked, which may have been minutes ago."""
    with ExitStack() as stack:
        try:
            value = stack.enter_context(opening)
        except FileNotFoundError:
            raise Busy(f"{path} was removed meanwhile; repeat the call") from None
        except OSError as error:
            raise FailedPrecondition(f"{path} cannot be opened: {error.strerror}") from error
        yield value


async def _run(action: str, *arguments: str, timeout_s: float | None = MOUNT_TIMEOUT_S) -> bool:
    """Whether it met a frozen filesystem and thawed it. CommandFailed, named as the action, with the kernel's words."""
    argv = [sys.executable, "-I", "-S", mounter.__file__, action, *arguments]
    try:
        done = await process.run(argv, timeout_s=timeout_s)
    except CommandFailed as error:
        raise CommandFailed([action, *arguments], error.exit_code, error.stderr) from error
    return done.stdout.strip() == mounter.THAWED


def node_number(mount: Mount) -> tuple[int, int] | None:
    """The number of the device whose node this mount shows; None when it shows something else."""
    # Device nodes live in a devtmpfs or tmpfs; asking only those keeps us from touching a filesystem that hangs.
    if mount.fs_type not in ("devtmpfs", "tmpfs") or mount.root == "/":
        return None
    try:
        found = os.lstat(mount.target)
    except OSError:
        return None
    return (os.major(found.st_rdev), os.minor(found.st_rdev)) if stat.S_ISBLK(found.st_mode) else None


def _is_node_of(mount: Mount, number: tuple[int, int]) -> bool:
    return node_number(mount) == number


def _on_block_device(mount: Mount) -> Mount:
    try:
        return replace(mount, device=devices.number(Path(mount.source)))
    except (NotFound, OSError):  # its device has gone
        return mount


def _unescape(text: str) -> str:
    """mountinfo writes space, tab, newline, backslash and # as three octal digits."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
