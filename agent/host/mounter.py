"""Mounts and unmounts, as a program of its own: `python mounter.py mount|bind|unmount|thaw ...`.

By the kernel's calls (fsopen(2), fsmount(2), open_tree(2), mount_setattr(2), move_mount(2); Linux 5.12) instead of
mount(8): they take the place as a descriptor, so that no name is looked up once more, whatever it has come to mean
(docs/decisions/0010). Places are named /proc/<pid>/fd/<n> here, descriptors of whoever runs this. A child process since
the kernel may wait for a device for ever, and a child can be killed. Nothing of the agent is imported, to start fast.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import sys
from collections.abc import Sequence

_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _MOUNT_SETATTR = 428, 429, 430, 431, 432, 442
"""System call numbers, the same on x86-64, aarch64 and whatever else SPDK runs on."""
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
_CLOEXEC = 1  # FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC
_TREE_CLOEXEC, _TREE_CLONE = os.O_CLOEXEC, 1
_FROM_EMPTY_PATH, _TO_EMPTY_PATH = 0x4, 0x40
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
_UMOUNT_NOFOLLOW = 8
_FITHAW = 0xC0045878  # linux/fs.h

THAWED = "thawed"
"""Said by whoever met a frozen filesystem, and thawed it."""

# linux/mount.h: MOUNT_ATTR_...
RDONLY, NOSUID, NODEV, NOEXEC, NODIRATIME, NOSYMFOLLOW = 0x1, 0x2, 0x4, 0x8, 0x80, 0x200000
_ATIME, NOATIME, STRICTATIME = 0x70, 0x10, 0x20

_ATTRIBUTES = {
    "suid": (0, NOSUID), "nosuid": (NOSUID, 0),
    "dev": (0, NODEV), "nodev": (NODEV, 0),
    "exec": (0, NOEXEC), "noexec": (NOEXEC, 0),
    "symfollow": (0, NOSYMFOLLOW), "nosymfollow": (NOSYMFOLLOW, 0),
    "diratime": (0, NODIRATIME), "nodiratime": (NODIRATIME, 0),
    "atime": (0, NOATIME), "noatime": (NOATIME, _ATIME),
    "strictatime": (STRICTATIME, _ATIME), "nostrictatime": (0, STRICTATIME),
    "relatime": (0, _ATIME), "norelatime": (0, 0),
}  # fmt: skip
"""Options of mount(8) that are the mount's and not the filesystem's: the bits to set after those to clear."""

_IGNORED = frozenset(("defaults", "auto", "noauto", "nofail", "_netdev"))
"""For the one who reads fstab(5), as are x-* and comment=*."""

_PARTS = re.compile(r'(?:[^,"]|"[^"]*")+')


class Failed(Exception):
    """A call of the kernel failed."""


def mount(fs_type: str, device: str, target: str, options: list[str]) -> None:
    """Mount the filesystem on `device` at the directory `target`.

    One that lived on frozen, without a mount, is thawed: nobody could write to it.
    """
    place = os.open(target, os.O_PATH | os.O_CLOEXEC)
    mounted = _mounted(fs_type, device, options)
    _thaw(mounted, ".")
    _move(mounted, place)


def thaw(device: str, *modes: str) -> None:
    """Thaw the filesystem of `device` that lives on without a mount. Nothing is said when there is none, or not frozen.

    It is mounted where nobody sees it, which ends with this program: as one of `modes` ("ro", "rw"), since the kernel
    gives a filesystem that is alive to those only who want it as it is. One that has ended meanwhile is not written to:
    the first mode is "ro", and without a replay of its journal.
    """
    unreplayed = {"ext4": "noload", "xfs": "norecovery", "btrfs": "rescue=nologreplay"}
    always = {"ext4": ["errors=remount-ro"], "xfs": ["nouuid"], "btrfs": []}
    for mode in modes:
        for fs_type, options in always.items():
            try:
                mounted = _mounted(fs_type, device, [*options, mode, *([unreplayed[fs_type]] if mode == "ro" else [])])
            except Failed:
                continue
            return _thaw(mounted, ".")
    return None


def bind(source: str, target: str, mode: str) -> None:
    """Make `source` (a mounted directory, or a device node) visible at `target`; "ro": never writable there."""
    place = os.open(target, os.O_PATH | os.O_CLOEXEC)
    tree = _call("", _OPEN_TREE, _AT_FDCWD, os.fsencode(source), _TREE_CLONE | _TREE_CLOEXEC)
    if mode == "ro":
        wanted = (ctypes.c_uint64 * 4)(RDONLY)  # struct mount_attr: attr_set, attr_clr, propagation, userns_fd
        _call("", _MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.addressof(wanted), ctypes.sizeof(wanted))
    _move(tree, place)


def unmount(folder: str, name: str, which: str) -> None:
    """Unmount what is mounted at `name` in `folder`, the one on top.

    `which` "last": of its filesystem, which is thawed first. Frozen it would live on, and nobody could thaw it.
    """
    os.chdir(folder)
    if which == "last":
        _thaw(None, name)
    if _libc.umount2(os.fsencode(name), _UMOUNT_NOFOLLOW):
        raise Failed(os.strerror(ctypes.get_errno()))


def split(options: Sequence[str]) -> tuple[int, list[str]]:
    """Attributes of the mount, and what is the filesystem's; of options that contradict each other the last counts."""
    attributes, own, read_only = 0, [], False
    for option in [part for text in options for part in _PARTS.findall(text)]:
        if option in ("ro", "rw"):
            read_only = option == "ro"
        elif option in _ATTRIBUTES:
            wanted, cleared = _ATTRIBUTES[option]
            attributes = attributes & ~cleared | wanted
        elif option not in _IGNORED and not option.startswith(("x-", "comment=")):
            own.append(option)
    return (attributes | RDONLY, [*own, "ro"]) if read_only else (attributes, own)


def _mounted(fs_type: str, device: str, options: list[str]) -> int:
    """A mount that is nowhere yet: it goes when its descriptor does."""
    context = _call("the kernel does not know it", _FSOPEN, fs_type.encode(), _CLOEXEC)
    try:
        attributes, own = split(options)
        _configure(context, _SET_STRING, "source", device)
        for option in own:
            name, separator, value = option.partition("=")
            if separator:
                _configure(context, _SET_STRING, name, value.replace('"', ""))
            else:
                _configure(context, _SET_FLAG, name)
        _configure(context, _CREATE)
        return _call("", _FSMOUNT, context, _CLOEXEC, attributes)
    finally:
        os.close(context)


def _thaw(folder: int | None, name: str) -> None:
    """Thaw the filesystem of a directory, and say so when it was frozen."""
    try:
        root = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except OSError:  # a device node, or a filesystem that has shut down
        return
    try:
        fcntl.ioctl(root, _FITHAW, 0)
        sys.stdout.write(f"{THAWED}\n")
    except OSError:  # EINVAL: not frozen. What cannot be thawed is unmounted all the same
        pass
    finally:
        os.close(root)


def _configure(context: int, command: int, name: str = "", value: str = "") -> None:
    key = name.encode() if name else None
    text = os.fsencode(value) if command == _SET_STRING else None
    try:
        _call(f"option {name!r}" if name else "", _FSCONFIG, context, command, key, text, 0)
    except Failed as error:
        said = _said(context)
        raise Failed(f"{error}: {said}" if said else str(error)) from None


def _said(context: int) -> str:
    """What the kernel said about a mount that failed: lines of "e name: text" (fsopen(2))."""
    lines: list[str] = []
    while True:
        try:
            line = os.read(context, 4096).decode(errors="replace").strip()
        except OSError:  # ENODATA: no more
            return "; ".join(lines)
        lines.append(line[2:] if line[:2] in ("e ", "w ", "i ") else line)


def _move(mounted: int, place: int) -> None:
    _call("", _MOVE_MOUNT, mounted, b"", place, b"", _FROM_EMPTY_PATH | _TO_EMPTY_PATH)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _call(what: str, number: int, *arguments: int | bytes | None) -> int:
    """A system call; `Failed` with `what` failed."""
    words = [ctypes.c_long(each) if isinstance(each, int) else ctypes.c_char_p(each) for each in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        reason = os.strerror(ctypes.get_errno())
        raise Failed(f"{what}: {reason}" if what else reason)
    return result


if __name__ == "__main__":
    action, *rest = sys.argv[1:]
    try:
        if action == "mount":
            mount(rest[0], rest[1], rest[2], rest[3:])
        elif action == "bind":
            bind(*rest)
        elif action == "thaw":
            thaw(*rest)
        else:
            unmount(*rest)
    except Failed as failure:
        sys.exit(str(failure))
    except OSError as failure:
        sys.exit(failure.strerror)
