"""The place of a UNIX socket: taken over from one that nobody listens on any more, and from nothing else."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

from agent.errors import FailedPrecondition

_ANSWER_TIMEOUT_S = 2.0


async def make_room(path: Path, choose: str) -> None:
    """Make the directory and remove a stale socket. `choose`: what else the user can give, for the remedy.

    Raises FailedPrecondition when something else is there, a socket in use included: that is left as it is.
    """
    mode = _prepare(path, choose)
    if mode is None:
        return
    if not stat.S_ISSOCK(mode):
        raise FailedPrecondition(
            f"{path} exists and is not a socket: it is left alone. Choose {choose}, or remove it if it is not needed"
        )
    if await _is_served(path):
        raise FailedPrecondition(f"another process already serves {path}; stop it or choose {choose}")
    await asyncio.to_thread(path.unlink, missing_ok=True)


def remove(path: Path, inode: int) -> None:
    """Remove a socket of ours, unless it is another's by now."""
    try:
        if path.lstat().st_ino == inode:
            path.unlink()
    except FileNotFoundError:
        return


def _prepare(path: Path, choose: str) -> int | None:
    """Make the directory; the mode of what is at `path`, None when nothing is."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.lstat().st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FailedPrecondition(f"cannot listen at {path}: {error.strerror}; choose {choose}") from error


async def _is_served(path: Path) -> bool:
    try:
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            _, writer = await asyncio.open_unix_connection(path)
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    except (OSError, TimeoutError):  # full backlog, no permission: somebody holds it
        return True
    writer.close()
    return True
