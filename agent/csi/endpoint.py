"""The UNIX socket of the CSI services: where it may be, and taking the place of one that nobody listens on any more."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

from agent.errors import FailedPrecondition, InvalidArgument, shorten

_SCHEME = "unix://"
_SOCKET_PATH_MAX = 107
"""sun_path of sockaddr_un(7) without its NUL."""
_ANSWER_TIMEOUT_S = 2.0


def socket_path(endpoint: str) -> Path:
    """The path in `unix:///abs/path`. Raises InvalidArgument for anything else."""
    remedy = "use unix:///absolute/path"
    if not endpoint.startswith(_SCHEME):
        raise InvalidArgument("csi_endpoint", f"{shorten(endpoint)!r} is no UNIX socket", remedy)
    text = endpoint.removeprefix(_SCHEME)
    if not text.startswith("/") or text.endswith("/") or "\0" in text:
        raise InvalidArgument("csi_endpoint", f"{shorten(endpoint)!r} names no absolute path of a socket", remedy)
    if len(text.encode()) > _SOCKET_PATH_MAX:
        raise InvalidArgument(
            "csi_endpoint", f"the path has {len(text.encode())} bytes", f"use at most {_SOCKET_PATH_MAX}"
        )
    return Path(text)


async def make_room(path: Path) -> None:
    """Make the directory and remove a stale socket.

    Raises FailedPrecondition when something else is there: gRPC would silently unlink even a socket in use.
    """
    mode = _prepare(path)
    if mode is None:
        return
    if not stat.S_ISSOCK(mode):
        raise FailedPrecondition(f"{path} exists and is not a socket; remove it or choose another endpoint")
    if await _is_served(path):
        raise FailedPrecondition(f"another process already serves {path}; stop it or choose another endpoint")
    await asyncio.to_thread(path.unlink, missing_ok=True)


def _prepare(path: Path) -> int | None:
    """Make the directory; the mode of what is at `path`, None when nothing is."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.lstat().st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FailedPrecondition(f"cannot offer CSI at {path}: {error.strerror}") from error


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
