"""What a machine is known by, kept in its state folder: made once, and the same after whatever happens elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from agent.errors import Unavailable


def kept(file: Path, make: Callable[[], str]) -> str:
    """The one line in `file`, which `make` gives when there is none yet. Survives power loss once it returned.

    Raises Unavailable when the file can be neither read nor written.
    """
    try:
        if file.exists() and (known := file.read_text().strip()):
            return known
        made = make()
        draft = file.with_suffix(".new")
        with draft.open("w") as opened:
            opened.write(f"{made}\n")
            opened.flush()
            os.fsync(opened.fileno())
        draft.replace(file)
        directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise Unavailable(f"{file} cannot be kept: {why}; make room or check the state folder") from error
    return made
