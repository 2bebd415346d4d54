"""QEMU's monitor (QMP) for the tests in the machine: what they write to a virtio serial port goes to it, and back.

Two commands more than QEMU has are about the volatile disks (tests/lab/volatile.py): `x-lose-unflushed` cuts the power
of the disks alone and answers how many bytes that cost, `x-cut-power` cuts that of the whole machine, which then starts
anew.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from pathlib import Path
from typing import Any

from tests.lab.volatile import Media

_CHUNK = 65536


def argv(folder: Path) -> list[str]:
    """QEMU's arguments. In the machine it is /dev/virtio-ports/monitor: QMP as it is after qmp_capabilities."""
    return [
        *("-qmp", f"unix:{folder}/qmp.sock,server=on,wait=off"),
        *("-qmp", f"unix:{folder}/own.sock,server=on,wait=off"),
        *("-chardev", f"socket,id=monitor,path={folder}/monitor.sock,server=on,wait=off"),
        *("-device", "virtserialport,chardev=monitor,name=monitor"),
    ]


class Relay:
    """Between the sockets that `argv` makes, from a started QEMU on; `close` when it has ended."""

    def __init__(self, folder: Path, media: Media) -> None:
        self._media = media
        self._monitor = _connected(folder / "qmp.sock")
        self._own = _connected(folder / "own.sock")
        self._guest = _connected(folder / "monitor.sock")
        self._said = self._own.makefile("r")
        with self._monitor.makefile("r") as lines:  # nothing comes after the answer: no command has been given
            _begin(self._monitor, lines)
        _begin(self._own, self._said)
        threading.Thread(target=_copy, args=(self._monitor, self._guest), daemon=True).start()
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        self._said.close()
        for end in (self._monitor, self._own, self._guest):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _listen(self) -> None:
        """To the machine."""
        with contextlib.suppress(OSError), self._guest.makefile("rb") as lines:
            for line in lines:
                match json.loads(line)["execute"]:
                    case "x-lose-unflushed":
                        self._media.switch_off()
                        lost = self._media.switch_on()
                        self._guest.sendall(json.dumps({"return": {"bytes": lost}}).encode() + b"\n")
                    case "x-cut-power":
                        self._cut_power()
                    case _:
                        self._monitor.sendall(line)

    def _cut_power(self) -> None:
        # The disks first: QEMU flushes them all when it stops a machine.
        self._media.switch_off()
        for command in ("stop", "system_reset"):
            self._execute(command)
        self._media.switch_on()
        self._execute("cont")

    def _execute(self, command: str) -> None:
        self._own.sendall(json.dumps({"execute": command}).encode() + b"\n")
        while "return" not in (said := _read(self._said)):
            assert "error" not in said, (command, said)


def _begin(monitor: socket.socket, lines: Any) -> None:
    lines.readline()
    monitor.sendall(b'{"execute": "qmp_capabilities"}\n')
    answer = _read(lines)
    assert "return" in answer, answer


def _read(lines: Any) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(lines.readline())
    return said


def _connected(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.connect(str(path))
    return made


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(_CHUNK):
            sink.sendall(chunk)
