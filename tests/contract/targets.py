"""The two kinds of targets that the contract is kept by, as processes a test can kill and start again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ADDRESS = "127.0.0.1"
START_TIMEOUT_S = 60.0

# Without this, iSCSI, which nobody here uses, needs more than a gigabyte to start.
SMALL_ISCSI = {
    "max_sessions": 1,
    "max_connections_per_session": 1,
    "pdu_pool_size": 64,
    "immediate_data_pool_size": 32,
    "data_out_pool_size": 32,
}
SMALL_CONFIG = {
    "subsystems": [{"subsystem": "iscsi", "config": [{"method": "iscsi_set_options", "params": SMALL_ISCSI}]}]
}

DIE_WITH_US = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
"""Even when the test run itself is killed; setpriv becomes the target by exec, so the pid is the target's.

The signal comes when the thread that started the target ends: start it from the main thread only.
"""


def find_spdk_tgt() -> str | None:
    """The real target: SPDK_TGT, else `spdk_tgt` on PATH."""
    given = os.environ.get("SPDK_TGT")
    if given:
        return given if os.access(given, os.X_OK) else None
    return shutil.which("spdk_tgt")


def find_nvmf_tgt() -> str | None:
    """The real target that can sleep: NVMF_TGT, the one beside SPDK_TGT, or the one on PATH."""
    given, beside = os.environ.get("NVMF_TGT"), find_spdk_tgt()
    path = given or (str(Path(beside).with_name("nvmf_tgt")) if beside else "")
    return path if path and os.access(path, os.X_OK) else None if given else shutil.which("nvmf_tgt")


class Target:
    """A target process with its RPC socket and a folder for its disks. `core` is for the real one, which polls."""

    def __init__(self, kind: str, core: int = 0, memory: Sequence[str] | None = None) -> None:
        """`kind`: embedded, real (spdk_tgt, which polls) or sleeping (nvmf_tgt in interrupt mode).

        `memory`: arguments of a real one; the default needs no hugepages.
        """
        self.kind = kind
        self._memory = list(memory if memory is not None else ("--no-huge", "-s", "768"))
        self.core = core % (os.cpu_count() or 1)
        self.directory = Path(tempfile.mkdtemp(prefix="qc-"))
        self.socket_path = self.directory / "rpc.sock"
        self.disks = self.directory / "disks"
        self.disks.mkdir()
        self.log_path = self.directory / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def disk(self, name: str, size_bytes: int) -> Path:
        """A sparse file to be a disk."""
        path = self.disks / name
        with path.open("wb") as file:
            file.truncate(size_bytes)
        return path

    def start(self) -> None:
        """Start the process and return when its socket accepts connections."""
        if self.kind != "embedded":
            # A killed spdk_tgt leaves its socket and a lock file beside it; the lock goes with the process.
            self.socket_path.unlink(missing_ok=True)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*DIE_WITH_US, *self._argv()], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._accepts():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the {self.kind} target did not start:\n{self.log_path.read_text()[-4000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, as a crash or power loss of the process."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def terminate(self, timeout_s: float = 30.0) -> int:
        """SIGTERM; returns the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout_s)

    def pause(self) -> None:
        """Stop a polling target from taking a core while nobody needs it."""
        if self.kind == "real" and self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """Kill and start: a target to which nothing has happened, but for its disks."""
        self.kill()
        self.start()

    def close(self) -> None:
        if self._process is not None:
            self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _accepts(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket_path)) == 0

    def _argv(self) -> list[str]:
        if self.kind == "embedded":
            argv = [sys.executable, "-m", "agent.cli.main", "target", "--rpc-socket", str(self.socket_path)]
            return [*argv, "--state-dir", str(self.directory / "state"), "--nvmf-address", ADDRESS]
        program = find_spdk_tgt() if self.kind == "real" else find_nvmf_tgt()
        assert program is not None
        argv = [program, *self._memory, "-r", str(self.socket_path)]
        if self.kind == "sleeping":
            argv += ["--interrupt-mode"]
        else:
            config = self.directory / "small.json"
            config.write_text(json.dumps(SMALL_CONFIG))
            argv += ["-c", str(config)]
        return [
            *argv,
            "-m",
            hex(1 << self.core),
            "--disable-cpumask-locks",
            *os.environ.get("SPDK_TGT_ARGS", "").split(),
        ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        port: int = probe.getsockname()[1]
        return port
