"""Holds a filesystem frozen, as a program of its own: `python freeze_holder.py hold SECONDS [PATH MOUNT_ID]...`.

A frozen filesystem stops every writer until somebody thaws it (ioctl_fsfreeze, FIFREEZE and FITHAW of linux/fs.h), and
nobody does so for a process that died. This one outlives whoever started it, and thaws at the end of its stdin, after
SECONDS, or at a signal. It says one word a line: what became of freezing, then how it ended. `thaw [PATH MOUNT_ID]...`
thaws what an earlier one left. Nothing of the agent is imported, to start fast and to have nothing that can fail.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import signal
import sys
import time

FIFREEZE = 0xC0045877
FITHAW = 0xC0045878

FROZEN = "frozen"
THAWED = "thawed"
"""Asked to, in time: nothing was written in between."""
LATE = "late"
"""SECONDS were over first."""
LOST = "lost"
"""Somebody else had thawed it."""
GIVEN_UP = "given-up"
"""Asked to end before it was frozen."""
INTERRUPTED = "interrupted"
GONE = "gone"
"""No PATH is the mount it should be."""

_SYNCS_MAX = 3


def hold(fd: int, seconds: float) -> str:
    """Freeze the filesystem of `fd` for at most `seconds`; returns how it ended. It is thawed then."""
    wake = _signals_as_data()
    _sync(fd, seconds)
    if select.select([0, wake], [], [], 0)[0]:
        return GIVEN_UP
    deadline = time.monotonic() + seconds
    try:
        fcntl.ioctl(fd, FIFREEZE, 0)
        ours = True
    except OSError as error:
        if error.errno != errno.EBUSY:
            return f"refused {error.errno}"
        ours = False  # frozen by somebody else (a backup's own hook): neither refused nor ours to thaw
    try:
        if time.monotonic() > deadline:
            return LATE
        say(FROZEN)
        ready = select.select([0, wake], [], [], max(0.0, deadline - time.monotonic()))[0]
    finally:
        held = thaw(fd) if ours else _still_frozen(fd)
    if not held:
        return LOST
    if wake in ready:
        return INTERRUPTED
    return THAWED if ready else LATE


def thaw(fd: int) -> bool:
    """Thaw; False when it was not frozen."""
    try:
        fcntl.ioctl(fd, FITHAW, 0)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def open_mount(pairs: list[str]) -> int | None:
    """The first PATH that is the mount MOUNT_ID (not something mounted over it), opened."""
    for path, mount_id in zip(pairs[::2], pairs[1::2], strict=True):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        with open(f"/proc/self/fdinfo/{fd}") as info:  # noqa: PTH123 - pathlib takes as long to import as all the rest
            if f"mnt_id:\t{mount_id}\n" in info.read():
                return fd
        os.close(fd)
    return None


def say(word: str) -> None:
    with contextlib.suppress(OSError):  # whoever listened may be gone
        os.write(1, word.encode() + b"\n")


def _sync(fd: int, seconds: float) -> None:
    """Write back while writers may go on, so that freezing has little left to write; again when that took long."""
    for _ in range(_SYNCS_MAX):
        began = time.monotonic()
        ctypes.CDLL(None).syncfs(fd)
        if time.monotonic() - began < seconds / 4:
            return


def _still_frozen(fd: int) -> bool:
    try:
        fcntl.ioctl(fd, FIFREEZE, 0)
    except OSError as error:
        return error.errno == errno.EBUSY
    thaw(fd)
    return False


def _signals_as_data() -> int:
    """A descriptor that becomes readable when a signal that would end us has come."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, lambda *_: None)
    return read_end


def main(arguments: list[str]) -> None:
    action, *rest = arguments
    pairs = rest[1:] if action == "hold" else rest
    fd = open_mount(pairs)
    if fd is None:
        say(GONE)
    elif action == "hold":
        say(hold(fd, float(rest[0])))
    else:
        say(THAWED if thaw(fd) else LOST)


if __name__ == "__main__":
    main(sys.argv[1:])
