"""The embedded target as a supervised child: started again when it dies, gone when its parent is."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent.spdk.client import Client
from agent.spdk.supervision import EmbeddedTarget

from .targets import ADDRESS
from .waiting import reconnected, until


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="qv-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def supervised(directory: Path) -> AsyncIterator[EmbeddedTarget]:
    target = EmbeddedTarget(directory / "rpc.sock", directory / "state", nvmf_address=ADDRESS, restart_min_s=0.01)
    await target.start()
    yield target
    await target.stop()
    assert target.pid is None


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"


async def running(pid: int) -> bool:
    return runs(pid)


async def test_a_killed_target_is_started_again(supervised: EmbeddedTarget, directory: Path) -> None:
    async with Client(directory / "rpc.sock", reconnect_min_s=0.01, reconnect_max_s=0.05) as rpc:
        await rpc.wait_connected(30)
        for restarts in (1, 2):
            pid = rpc.peer_pid
            assert pid is not None and pid == supervised.pid
            os.kill(pid, signal.SIGKILL)
            await until(lambda: asyncio.sleep(0, supervised.restarts), lambda n, wanted=restarts: n == wanted)
            assert supervised.pid is not None
            await reconnected(rpc, supervised.pid)
        assert rpc.generation >= 3


async def test_stop_ends_it_for_good(directory: Path) -> None:
    target = EmbeddedTarget(directory / "rpc.sock", directory / "state", nvmf_address=ADDRESS)
    await target.start()
    pid = target.pid
    assert pid is not None
    await target.stop()
    await target.stop()
    assert not runs(pid)
    assert target.restarts == 0


PARENT = """
import asyncio, sys
from pathlib import Path
from agent.spdk.supervision import EmbeddedTarget
async def main():
    target = EmbeddedTarget(Path(sys.argv[1]) / "rpc.sock", Path(sys.argv[1]) / "state", nvmf_address="127.0.0.1")
    await target.start()
    print(target.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_a_killed_parent_leaves_no_orphan(directory: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(directory), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert parent.stdout is not None
        pid = int(await parent.stdout.readline())
        assert runs(pid)
    finally:
        parent.kill()
        await parent.wait()
    await until(lambda: running(pid), lambda alive: not alive)
