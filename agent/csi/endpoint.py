"""The UNIX socket of the CSI services: where it may be."""

from __future__ import annotations

from pathlib import Path

from agent.errors import InvalidArgument, shorten

_SCHEME = "unix://"
_SOCKET_PATH_MAX = 107
"""sun_path of sockaddr_un(7) without its NUL."""


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
