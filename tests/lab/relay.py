"""QEMU's monitor (QMP) for the tests in the machine: what they write to a virtio serial port goes to it, and back."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from pathlib import Path

_CHUNK = 65536


def argv(folder: Path) -> list[str]:
    """QEMU's arguments. In the machine it is /dev/virtio-ports/monitor: QMP as it is after qmp_capabilities."""
    return [
        *("-qmp", f"unix:{folder}/qmp.sock,server=on,wait=off"),
        *("-chardev", f"socket,id=monitor,path={folder}/monitor.sock,server=on,wait=off"),
        *("-device", "virtserialport,chardev=monitor,name=monitor"),
    ]


class Relay:
    """Between the two sockets that `argv` makes, from a started QEMU on; `close` when it has ended."""

    def __init__(self, folder: Path) -> None:
        self._monitor = _connected(folder / "qmp.sock")
        self._guest = _connected(folder / "monitor.sock")
        with self._monitor.makefile("r") as lines:  # nothing comes after the answer: no command has been given
            lines.readline()
            self._monitor.sendall(b'{"execute": "qmp_capabilities"}\n')
            answer = json.loads(lines.readline())
        assert "return" in answer, answer
        for source, sink in ((self._monitor, self._guest), (self._guest, self._monitor)):
            threading.Thread(target=_copy, args=(source, sink), daemon=True).start()

    def close(self) -> None:
        for end in (self._monitor, self._guest):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def _connected(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.connect(str(path))
    return made


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(_CHUNK):
            sink.sendall(chunk)
