"""The machine's free PCIe slots: an NVMe disk that can be plugged in and pulled out, by QEMU's monitor (QMP)."""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SLOTS = ("slot-c", "slot-d")
SERIAL = "LABHOT0001"
_PORT = Path("/dev/virtio-ports/monitor")
_PATIENCE_S = 60.0


class Monitor:
    """QEMU's, as tests/lab/relay.py passes it on."""

    def __init__(self) -> None:
        self._port = os.open(_PORT, os.O_RDWR | os.O_CLOEXEC)
        self._buffer = b""

    def cut_power(self) -> None:
        """The machine starts anew, without what its volatile disks were not told to flush. Does not return in time."""
        self._ask("x-cut-power")

    def lose_unflushed(self) -> int:
        """Cut the power of the volatile disks alone: they lose what they were not told to flush, so many bytes."""
        self._ask("x-lose-unflushed")
        return int(self.until(lambda said: "return" in said)["return"]["bytes"])

    def close(self) -> None:
        os.close(self._port)

    def execute(self, command: str, **arguments: Any) -> None:
        request = self._ask(command, **arguments)
        said = self.until(lambda said: "return" in said or "error" in said)
        assert "return" in said, (request, said)

    def _ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        request = {"execute": command, "arguments": arguments}
        os.write(self._port, json.dumps(request).encode() + b"\n")
        return request

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            line, found, rest = self._buffer.partition(b"\n")
            if found:
                self._buffer = rest
                said: dict[str, Any] = json.loads(line)
                if wanted(said):
                    return said
                continue
            assert select.select([self._port], [], [], max(0.0, deadline - time.monotonic()))[0], "QEMU does not answer"
            self._buffer += os.read(self._port, 65536)


class HotDisk:
    """One disk with the serial number SERIAL, at first in no slot.

    `virtual`: not an NVMe disk, but one of a hypervisor, whose write cache cannot be switched off.
    """

    def __init__(self, *, virtual: bool = False) -> None:
        self._monitor = Monitor()
        self._slot = ""
        self._device: dict[str, Any] = {"driver": "nvme", "drive": "hot"}
        if virtual:
            self._device = {"driver": "virtio-blk-pci", "drive": "fixed", "config-wce": False}

    def plug(self, slot: str) -> None:
        """Into one of SLOTS."""
        self._monitor.execute("device_add", id=f"hot-{slot}", serial=SERIAL, bus=slot, **self._device)
        self._slot = slot

    def pull(self) -> None:
        """Out, whoever uses it. Returns when the machine has no such device any more; as often as wanted."""
        if self._slot:
            device, self._slot = f"hot-{self._slot}", ""
            self._monitor.execute("device_del", id=device)
            self._monitor.until(
                lambda said: said.get("event") == "DEVICE_DELETED" and said["data"].get("device") == device
            )

    def close(self) -> None:
        self.pull()
        self._monitor.close()
