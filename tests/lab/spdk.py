"""A real spdk_tgt for the machine: the program with the libraries it is linked to, copied to a folder to be shared."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The machine's own C library and loader serve: both systems are Debian 12, or the program will say so.
_NOT_COPIED = ("libc.so", "libm.so", "libpthread", "libdl.", "librt.", "ld-linux", "linux-vdso")


def find() -> Path | None:
    """SPDK_TGT, or the one on PATH."""
    found = os.environ.get("SPDK_TGT") or shutil.which("spdk_tgt")
    return Path(found) if found else None


@contextmanager
def shared() -> Iterator[Path | None]:
    """A folder with spdk_tgt and lib/, for the time of the block; None when this computer has none."""
    program = find()
    if program is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="quarry-lab-spdk-") as name:
        folder = Path(name)
        (folder / "lib").mkdir()
        shutil.copy2(program, folder / "spdk_tgt")
        listing = subprocess.run(["ldd", str(program)], check=True, capture_output=True, text=True).stdout
        for line in listing.splitlines():
            library, arrow, rest = line.strip().partition(" => ")
            if arrow and rest.startswith("/") and not library.startswith(_NOT_COPIED):
                shutil.copy2(rest.split()[0], folder / "lib" / library)
        yield folder
