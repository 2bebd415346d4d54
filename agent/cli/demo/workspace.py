"""The temporary folder of a demo, and the proof that nothing of it stays: mounts, block devices, processes, files."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from agent.errors import QuarryError
from agent.host import process
from agent.host.nvme_host import NvmeHost
from agent.sizes import SOCKET_PATH_MAX_BYTES

_COMMAND_TIMEOUT_S = 10.0
_KILL_GRACE_S = 3.0
_REMOVE_TIMEOUT_S = 2.0


class Workspace:
    """A folder of our own and a free TCP port, so that demos can run beside each other and beside anything else."""

    def __init__(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="quarry-demo-")).resolve()
        if len(str(folder)) > SOCKET_PATH_MAX_BYTES - 40:  # a deep TMPDIR: sockets in it could not be bound
            folder.rmdir()
            folder = Path(tempfile.mkdtemp(prefix="quarry-demo-", dir="/tmp")).resolve()
        self.folder = folder
        self.port = _free_port()

    async def sweep(self) -> list[str]:
        """Remove whatever is still there, the folder last. Returns what should not have been there any more."""
        found = await self._end_processes()
        found += await self._unmount()
        found += await self._disconnect()
        found += await self._detach_loops()
        # A thread whose caller was interrupted goes on to its end, and may be making a file in the folder right now.
        await asyncio.get_running_loop().shutdown_default_executor()
        return found + self._remove()

    def _remove(self) -> list[str]:
        deadline = time.monotonic() + _REMOVE_TIMEOUT_S
        while self.folder.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            if time.monotonic() > deadline:
                return [f"folder {self.folder} (could not be removed)"]
        return []

    async def _end_processes(self) -> list[str]:
        children = psutil.Process().children(recursive=True)
        found = []
        for child in children:
            with suppress(psutil.NoSuchProcess):
                found.append(f"process {child.pid} ({child.name()})")
                child.send_signal(signal.SIGTERM)
        _, stuck = psutil.wait_procs(children, timeout=_KILL_GRACE_S)
        for child in stuck:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(stuck, timeout=_KILL_GRACE_S)
        return found

    async def _unmount(self) -> list[str]:
        found = []
        for point in self.mounts():
            found.append(f"mount {point}")
            if not await _try(["umount", str(point)]):
                await _try(["umount", "--lazy", str(point)])
        return found

    async def _disconnect(self) -> list[str]:
        found = []
        for controller in self.controllers():
            found.append(f"NVMe controller {controller}")
            with suppress(QuarryError):
                await NvmeHost().delete(controller)
        return found

    async def _detach_loops(self) -> list[str]:
        found = []
        for device in self.loops():
            found.append(f"loop device {device}")
            await _try(["losetup", "--detach", str(device)])
        return found

    def mounts(self) -> list[Path]:
        """Mount points below the folder, the one mounted last first (proc_pid_mountinfo(5))."""
        text = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
        points = [_unescape(line.split(" ")[4]) for line in text.splitlines()]
        return [point for point in reversed(points) if point.is_relative_to(self.folder)]

    def loops(self) -> list[Path]:
        """Loop devices whose backing file is below the folder."""
        found = []
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            with suppress(OSError):  # detached while we look
                if Path(backing.read_text().rstrip("\n")).is_relative_to(self.folder):
                    found.append(Path("/dev") / backing.parent.parent.name)
        return found

    def controllers(self) -> list[str]:
        """Kernel NVMe/TCP controllers that are connected to our port."""
        found = []
        for address in Path("/sys/class/nvme").glob("nvme*/address"):
            with suppress(OSError):
                if f"trsvcid={self.port}" in address.read_text().strip().split(","):
                    found.append(address.parent.name)
        return found


async def _try(argv: list[str]) -> bool:
    """Run a program that may fail: what it should have removed is looked at again afterwards, or reported."""
    try:
        await process.run(argv, timeout_s=_COMMAND_TIMEOUT_S)
    except QuarryError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _unescape(field: str) -> Path:
    """A path of mountinfo: blanks and the like are written as octal escapes."""
    raw = os.fsencode(field)
    for code in (b"040", b"011", b"012", b"134"):
        raw = raw.replace(b"\\" + code, bytes([int(code, 8)]))
    return Path(os.fsdecode(raw))
