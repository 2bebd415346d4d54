"""Paths that a caller names for us to mount on: what is allowed, and opening them without following a link.

The caller (a container orchestrator) is trusted less than the administrator who configured the roots. So a root may be
or lie behind a symbolic link, while nothing below it may: every component is opened relative to the one before with
O_NOFOLLOW, and mounts are made on the descriptor, not on the name, so that a link swapped in later changes nothing.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.errors import FailedPrecondition, InvalidArgument, shorten

PATH_MAX_BYTES = 4096
NAME_MAX_BYTES = 255
_DIRECTORY = os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
_ANYTHING = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class CheckedPath:
    """A path below an allowed root. `real` is how the kernel names it: the root resolved, the rest as given."""

    field: str
    root: Path
    parts: tuple[str, ...]

    @property
    def real(self) -> Path:
        return self.root.joinpath(*self.parts)

    def __str__(self) -> str:
        return str(self.real)

    @contextmanager
    def parent(self) -> Iterator[int]:
        """A descriptor of the directory that holds the last component. FileNotFoundError when it is not there."""
        descriptor = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in self.parts[:-1]:
                below = self._enter(part, descriptor)
                os.close(descriptor)
                descriptor = below
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def opened(self) -> Iterator[str]:
        """A name of the path itself (directory or file) that keeps meaning the same inode: /proc/<pid>/fd/<n>."""
        with self.parent() as parent:
            descriptor = os.open(self.parts[-1], _ANYTHING, dir_fd=parent)
            try:
                if _is_link(descriptor, parent):
                    raise self._link(self.parts[-1])
                yield f"/proc/{os.getpid()}/fd/{descriptor}"
            finally:
                os.close(descriptor)

    def make_directory(self, mode: int = 0o750) -> None:
        """Make the last component a directory; one that is there is fine. InvalidArgument for anything else there."""
        with self._parent_required() as parent:
            try:
                os.mkdir(self.parts[-1], mode, dir_fd=parent)
            except FileExistsError:
                self._expect(parent, stat.S_ISDIR, "a directory")

    def make_file(self, mode: int = 0o600) -> None:
        """Make the last component an empty file, a place to bind a device node on; one that is there is fine."""
        with self._parent_required() as parent:
            try:
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(self.parts[-1], flags, mode, dir_fd=parent))
            except FileExistsError:
                self._expect(parent, stat.S_ISREG, "a regular file")

    def remove(self) -> None:
        """Remove an empty directory or an empty file; absent is fine. OSError (ENOTEMPTY) when something is in it."""
        try:
            with self.parent() as parent:
                found = os.stat(self.parts[-1], dir_fd=parent, follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    os.rmdir(self.parts[-1], dir_fd=parent)
                elif stat.S_ISREG(found.st_mode) and found.st_size == 0:
                    os.unlink(self.parts[-1], dir_fd=parent)
                else:
                    raise InvalidArgument(self.field, f"{shorten(str(self))} is neither a directory nor an empty file")
        except FileNotFoundError:
            return

    @contextmanager
    def _parent_required(self) -> Iterator[int]:
        try:
            with self.parent() as parent:
                yield parent
        except FileNotFoundError:
            missing = shorten(str(self.real.parent))
            raise InvalidArgument(
                self.field, f"{missing} does not exist", "create the parent directory first"
            ) from None
        except OSError as error:
            raise FailedPrecondition(f"{shorten(str(self))} cannot be made: {error.strerror}") from error

    def _enter(self, part: str, parent: int) -> int:
        try:
            return os.open(part, _DIRECTORY, dir_fd=parent)
        except NotADirectoryError:
            if stat.S_ISLNK(os.stat(part, dir_fd=parent, follow_symlinks=False).st_mode):
                raise self._link(part) from None
            raise InvalidArgument(self.field, f"{shorten(part)!r} in it is not a directory") from None

    def _expect(self, parent: int, kind: object, name: str) -> None:
        mode = os.stat(self.parts[-1], dir_fd=parent, follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):
            raise self._link(self.parts[-1])
        # A device node bound on a file shows as that device here, and is what we made earlier.
        right = stat.S_ISDIR(mode) if name == "a directory" else stat.S_ISREG(mode) or stat.S_ISBLK(mode)
        if not right:
            raise InvalidArgument(self.field, f"{shorten(str(self))} exists and is not {name}")

    def _link(self, part: str) -> InvalidArgument:
        return InvalidArgument(
            self.field, f"{shorten(part)!r} in it is a symbolic link", f"links are not followed below {self.root}"
        )


def _is_link(descriptor: int, parent: int) -> bool:
    """Whether `descriptor`, opened in the directory `parent` without following links, is one."""
    try:
        return stat.S_ISLNK(os.fstat(descriptor).st_mode)
    except OSError as error:
        # The root of a mounted filesystem that has shut down (XFS) can be unmounted, but not be looked at.
        if error.errno == errno.EIO and _mount_id(descriptor) != _mount_id(parent):
            return False
        raise


def _mount_id(descriptor: int) -> str:
    lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    return next(line for line in lines if line.startswith("mnt_id:"))


def check_path(field: str, path: Path | str, roots: Sequence[Path]) -> CheckedPath:
    """`path` when we may mount on it, else InvalidArgument naming `field` and the allowed `roots`.

    Absolute, without "..", without control characters, not longer than the kernel allows, below (not at) one of the
    roots, and no symbolic link in any component that exists below the root.
    """
    text = os.fspath(path)
    _check_text(field, text)
    parts = Path(text).parts
    for root in roots:
        above = root.parts
        if parts[: len(above)] == above and len(parts) > len(above):
            checked = CheckedPath(field, Path(os.path.realpath(root)), parts[len(above) :])
            _check_links(checked)
            return checked
    allowed = ", ".join(map(str, roots)) or "none are configured"
    remedy = f"allowed: {allowed}; others are named by `mount_roots` (--mount-root)"
    raise InvalidArgument(field, f"{shorten(text)!r} is outside the allowed directories", remedy)


def _check_text(field: str, text: str) -> None:
    if not text:
        raise InvalidArgument(field, "is empty", "give an absolute path")
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise InvalidArgument(field, f"{shorten(text)!r} contains control characters")
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(field, "is not UTF-8") from None
    if length >= PATH_MAX_BYTES:
        raise InvalidArgument(field, f"is {length} bytes long", f"the limit is {PATH_MAX_BYTES - 1}")
    if not text.startswith("/"):
        raise InvalidArgument(field, f"{shorten(text)!r} is not absolute")
    components = text.split("/")
    if ".." in components or "." in components:
        raise InvalidArgument(field, f'{shorten(text)!r} contains "." or ".." components')
    if any(len(component.encode()) > NAME_MAX_BYTES for component in components):
        raise InvalidArgument(field, f"a component is longer than {NAME_MAX_BYTES} bytes")


def _check_links(checked: CheckedPath) -> None:
    try:
        with checked.opened():
            return
    except FileNotFoundError:
        return  # what does not exist yet is made by us, relative to its opened parent
    except PermissionError:
        raise FailedPrecondition(f"{checked} cannot be looked at: permission denied; run the agent as root") from None
    except OSError as error:
        raise FailedPrecondition(f"{checked} cannot be looked at: {error.strerror}") from error
