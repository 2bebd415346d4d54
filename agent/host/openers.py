"""Which processes have a file open, by /proc."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Opener:
    pid: int
    program: str

    def __str__(self) -> str:
        return f"{self.program} (process {self.pid})"


def openers(paths: Collection[str]) -> list[Opener]:
    """Processes that have one of these files open. Those of other users show to root only, those of others'
    pid namespaces not at all."""
    found = []
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()):  # noqa: PTH208 - names
        if not paths or pid == os.getpid() or not _has_open(pid, paths):
            continue
        try:
            program = Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            continue  # gone meanwhile
        found.append(Opener(pid, program))
    return found


def _has_open(pid: int, paths: Collection[str]) -> bool:
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            if os.readlink(entry.path) in paths:  # noqa: PTH115 - text
                return True
    except OSError:
        return False
    return False
