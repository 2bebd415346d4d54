"""The UNIX socket of the CSI services: where it may be."""

from __future__ import annotations

from pathlib import Path

from agent.errors import InvalidArgument, shorten
from agent.sizes import SOCKET_PATH_MAX_BYTES

_SCHEME = "unix://"


def socket_path(endpoint: str) -> Path:
    """The path in `unix:///abs/path`. Raises InvalidArgument for anything else."""
    remedy = "use unix:///absolute/path"
    if not endpoint.startswith(_SCHEME):
        raise InvalidArgument("csi_endpoint", f"{shorten(endpoint)!r} is no UNIX socket", remedy)
    text = endpoint.removeprefix(_SCHEME)
    if not text.startswith("/") or text.endswith("/") or "\0" in text:
        raise InvalidArgument("csi_endpoint", f"{shorten(endpoint)!r} names no absolute path of a socket", remedy)
    if len(text.encode()) > SOCKET_PATH_MAX_BYTES:
        raise InvalidArgument(
            "csi_endpoint", f"the path has {len(text.encode())} bytes", f"use at most {SOCKET_PATH_MAX_BYTES}"
        )
    return Path(text)
