"""The target under measurement: a real spdk_tgt or the embedded one, started, killed and started again by the bench."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.raw import RawClient

MAX_SUBSYSTEMS = 4096
"""SPDK's default is 1024 and can only be changed before the subsystems are initialised."""

START_TIMEOUT_S = 60.0


def find_real() -> str | None:
    """The spdk_tgt named by SPDK_TGT, else the one on PATH."""
    return os.environ.get("SPDK_TGT") or shutil.which("spdk_tgt")


def find_sleeping() -> str | None:
    """The nvmf_tgt named by NVMF_TGT, else the one beside spdk_tgt, else the one on PATH."""
    real = find_real()
    beside = Path(real).with_name("nvmf_tgt") if real else None
    return os.environ.get("NVMF_TGT") or (str(beside) if beside and beside.exists() else shutil.which("nvmf_tgt"))


def free_port(address: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


def leave_a_cpu_to_the_target(target_cpu: int) -> None:
    """Keeps this process and its children off the CPU that the target polls on.

    Sharing it would falsify the result in both directions: whoever is woken by an answer preempts the reactor in the
    middle of its poll, so that the next request is sometimes seen 4 ms earlier and sometimes later.
    """
    others = os.sched_getaffinity(0) - {target_cpu}
    if others:
        os.sched_setaffinity(0, others)


@dataclass
class Target:
    """One target process in `folder`. `real` is the path of spdk_tgt or nvmf_tgt, None for the embedded target."""

    folder: Path
    real: str | None
    cpu: int = 0
    address: str = "127.0.0.1"
    interrupt: bool = False
    """Start the real one with --interrupt-mode."""
    process: asyncio.subprocess.Process | None = field(default=None, init=False)

    @property
    def kind(self) -> str:
        return "real" if self.real else "embedded"

    @property
    def name(self) -> str:
        """Of the program."""
        return Path(self.real).name if self.real else "embedded"

    @property
    def mode(self) -> str:
        return "interrupt" if self.interrupt or self.real is None else "polling"

    @property
    def socket(self) -> Path:
        return self.folder / "rpc.sock"

    async def start(self) -> float:
        """Starts it; returns when it answers, with the moment (monotonic seconds) it did first."""
        with (self.folder / "target.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self._argv(), stdout=log, stderr=log, preexec_fn=self._all_cpus
            )
        rpc = await self._connected()
        try:
            if self.real:
                await rpc.call("nvmf_set_max_subsystems", {"max_subsystems": MAX_SUBSYSTEMS})
                await rpc.call("framework_start_init")
            answered = time.monotonic()
            await rpc.call("spdk_get_version")
            return answered
        finally:
            rpc.close()

    def _argv(self) -> list[str]:
        if self.real is None:
            return [
                *(sys.executable, "-m", "agent.cli.main", "target"),
                *("--rpc-socket", str(self.socket), "--state-dir", str(self.folder / "target")),
                *("--nvmf-address", self.address),
            ]
        return [
            *(self.real, "-r", str(self.socket), "-m", hex(1 << self.cpu), "--disable-cpumask-locks"),
            *("--no-pci", "--no-huge", "-s", "2048", "--wait-for-rpc"),
            *(("--interrupt-mode",) if self.interrupt else ()),
        ]

    @staticmethod
    def _all_cpus() -> None:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))

    async def _connected(self) -> RawClient:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                return await RawClient.connect(self.socket)
            except OSError as error:
                if self.process is None or self.process.returncode is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the target did not start: see {self.folder / 'target.log'}") from error
            await asyncio.sleep(0.005)

    async def kill(self) -> None:
        """kill -9, as a crash."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
