"""udev's daemon: whether it is there to pass events on and to keep its database."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

CONTROL = Path("/run/udev/control")
"""Its control socket (systemd-udevd.service(8)); a daemon that was killed leaves it behind."""

_NOBODY = (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR)


def serves() -> bool:
    """Whether somebody listens at its socket. One that we may not connect to counts as served."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as ours:
        return ours.connect_ex(str(CONTROL)) not in _NOBODY
