"""Room on the filesystem of a folder that things are recorded in."""

from __future__ import annotations

import os
from pathlib import Path

ROOM_MIN_BYTES = 1 << 20
"""With less, the next records may not find room: a database grows by its log, a note by a block or two."""

REMEDY = "free some there (`df`, `du -x`); nothing that is stored is lost, and everything goes on by itself then"


def free_bytes(folder: Path) -> int:
    """What this process may still write there. Root may use what the filesystem keeps back from others. OSError."""
    found = os.statvfs(folder)
    blocks = found.f_bfree if os.geteuid() == 0 else found.f_bavail
    return int(blocks * found.f_frsize)


def lacking(folder: Path, wanted_bytes: int = ROOM_MIN_BYTES) -> str:
    """What is wrong with the room at `folder`, as a sentence with the remedy; empty when there is enough."""
    try:
        free, found = free_bytes(folder), os.statvfs(folder)
    except OSError as error:
        return f"the state folder {folder} cannot be looked at: {error.strerror}"
    if free < wanted_bytes:
        return f"the filesystem of {folder} is full ({free >> 10} KiB free), so nothing can be recorded: {REMEDY}"
    if found.f_files and not found.f_ffree:
        return f"the filesystem of {folder} has no inodes left, so nothing can be recorded: remove files there"
    return ""
