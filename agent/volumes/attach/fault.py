"""What is wrong with a filesystem in use that the target knows nothing of: the kernel gave it up after an I/O error."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path

from agent.host.mount import Mount

_READ_ONLY = frozenset({"ro", "emergency_ro"})
"""Options of a filesystem that turned read-only; the second one since Linux 6.15 (ext4)."""

_REMEDY = "remove the cause (a full pool, a lost target), then stop its pods: staged again it is checked and writable"


def of_filesystem(uses: Iterable[Mount], path: Path) -> str:
    """What is wrong with the filesystem that is mounted as `uses` and visible at `path`; empty: nothing.

    A mount that was to be read-only has that option itself. Asks the kernel only what it knows without I/O.
    """
    if any("ro" not in mount.options and mount.super_options & _READ_ONLY for mount in uses):
        return f"the filesystem has turned read-only after an error; {_REMEDY}"
    try:
        path.stat()
    except OSError as error:
        if error.errno == errno.EIO:  # XFS: shut down, which its options do not tell
            return f"the filesystem has shut down after an error; {_REMEDY}"
    return ""
