"""Runs inside the lab's machine: brings it up, then carries out the commands that come over a virtio serial port.

One JSON object a line. From the host: {"argv": [...], "env": {...}, "timeout_s": 1.0}; to the host: {"out": "text"} as
often as there is output, then {"exit": status}. Only the standard library, so that it works before anything is mounted.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PORT = Path("/dev/virtio-ports/lab")
MODULES = ("nvme-tcp", "loop", "ublk_drv", "nvme", "ahci", "sd_mod", "virtio_scsi", "xhci_pci", "usb_storage")
_CHUNK = 65536


def bring_up() -> None:
    """What an init system would do, as far as the tests need it."""
    socket.sethostname("lab")
    Path("/run/lock").mkdir(parents=True, exist_ok=True)
    Path("/dev/shm").mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm"], check=True)
    subprocess.run(["/lib/systemd/systemd-udevd", "--daemon"], check=True)
    # Not everything: modules for hardware that no test needs take half a minute to load.
    subprocess.run(["udevadm", "trigger", "--action=add", "-s", "block", "-s", "virtio-ports"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["modprobe", "-a", *MODULES], check=True)
    subprocess.run(["udevadm", "settle", "--timeout=60"], check=True)
    for tag in sys.argv[1:]:
        Path("/", tag).mkdir(exist_ok=True)
        options = "trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro"
        subprocess.run(["mount", "-t", "9p", "-o", options, tag, f"/{tag}"], check=True)


class Channel:
    """The port, unbuffered in both directions."""

    def __init__(self, path: Path) -> None:
        self._port = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._buffer = b""

    def receive(self) -> dict[str, object] | None:
        """The next request; None when the host went away."""
        while b"\n" not in self._buffer:
            chunk = os.read(self._port, _CHUNK)
            if not chunk:
                return None
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        request: dict[str, object] = json.loads(line)
        return request

    def send(self, message: dict[str, object]) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self._port, data) :]


def execute(channel: Channel, argv: list[str], env: dict[str, str], timeout_s: float) -> int:
    """Run a command in its own process group, passing its output on. 124 when it took too long, as timeout(1)."""
    deadline = time.monotonic() + timeout_s
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=os.environ | env, cwd="/checkout", start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        channel.send({"out": f"{argv[0]}: {error}\n"})
        return 127
    assert process.stdout is not None
    output = process.stdout.fileno()
    while (left := deadline - time.monotonic()) > 0:
        if select.select([output], [], [], min(left, 1.0))[0]:
            chunk = os.read(output, _CHUNK)
            if not chunk:
                break
            channel.send({"out": chunk.decode(errors="replace")})
        elif process.poll() is not None:  # a daemon it left behind may keep the output open
            break
    else:
        os.killpg(process.pid, signal.SIGKILL)
        return 124
    return process.wait()


def main() -> None:
    bring_up()
    deadline = time.monotonic() + 30
    while not PORT.exists():
        if time.monotonic() > deadline:
            raise SystemExit(f"{PORT} did not appear")
        time.sleep(0.05)
    channel = Channel(PORT)
    channel.send({"ready": os.uname().release})
    while (request := channel.receive()) is not None:
        argv, env, timeout_s = request["argv"], request["env"], request["timeout_s"]
        assert isinstance(argv, list)
        assert isinstance(env, dict)
        assert isinstance(timeout_s, int | float)
        channel.send({"exit": execute(channel, argv, env, timeout_s)})


if __name__ == "__main__":
    main()
