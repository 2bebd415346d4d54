"""The embedded target as a child process: started, restarted when it dies, stopped with us."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from pathlib import Path

from agent.errors import QuarryError
from agent.host.process import Process, spawn
from agent.tasks.background import Background

log = logging.getLogger(__name__)
output = logging.getLogger("agent.target")
"""What the target prints."""

_STEADY_S = 10.0
"""A target that ran this long is started again without delay when it dies."""


class EmbeddedTarget:
    """Runs `quarry target` and keeps it running until `stop`.

    The child dies with this process, however that ends (PR_SET_PDEATHSIG, see agent.host.process). Whether the target
    answers is not known here: `Client.wait_connected` tells.
    """

    def __init__(
        self,
        rpc_socket: Path,
        state_dir: Path,
        *,
        nvmf_address: str | None = None,
        restart_min_s: float = 0.1,
        restart_max_s: float = 5.0,
        grace_s: float = 5.0,
    ) -> None:
        """`grace_s`: how long the child may take to end after SIGTERM before it is killed."""
        self.restarts = 0
        """How often the child was started again after it had died."""
        self._argv = [sys.executable, "-m", "agent.cli.main", "target"]
        self._argv += ["--rpc-socket", str(rpc_socket), "--state-dir", str(state_dir)]
        if nvmf_address is not None:
            self._argv += ["--nvmf-address", nvmf_address]
        self._restart_min_s = restart_min_s
        self._restart_max_s = restart_max_s
        self._grace_s = grace_s
        self._process: Process | None = None
        self._background = Background(pause_s=restart_min_s, pause_max_s=restart_max_s)

    @property
    def pid(self) -> int | None:
        """Process id of the running child, None while there is none."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if running and self._process else None

    async def start(self) -> None:
        """Start the child and begin watching it. Raises what `spawn` raises when it cannot be started at all."""
        if self._process is None:
            self._process = await spawn(self._argv, log=output)
            self._background.keep("embedded-target", self._keep_running)

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL when it takes too long; returns when the child is gone. Idempotent."""
        await self._background.stop()
        if self._process is not None:
            await self._process.terminate(self._grace_s)
            self._process = None

    async def __aenter__(self) -> EmbeddedTarget:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    async def _keep_running(self) -> None:
        loop = asyncio.get_running_loop()
        delay_s = self._restart_min_s
        while (process := self._process) is not None:
            started = loop.time()
            code = await process.wait()
            if loop.time() - started >= _STEADY_S:
                delay_s = self._restart_min_s
            log.warning("the embedded target ended; starting it again", extra={"code": code, "delay_s": delay_s})
            await self._start_again(delay_s)
            delay_s = min(delay_s * 2, self._restart_max_s)

    async def _start_again(self, delay_s: float) -> None:
        while True:
            await asyncio.sleep(delay_s)
            try:
                self._process = await self._spawn_to_end()
            except QuarryError as error:
                log.warning("cannot start the embedded target", extra={"error": str(error)})
                delay_s = min(delay_s * 2, self._restart_max_s)
                continue
            self.restarts += 1
            return

    async def _spawn_to_end(self) -> Process:
        """`spawn`, not to be interrupted between the child's start and our knowing it."""
        starting = asyncio.ensure_future(spawn(self._argv, log=output))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            with contextlib.suppress(QuarryError):
                self._process = await starting
            raise
