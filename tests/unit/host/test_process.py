"""Child processes: exit codes, deadlines, cancellation, bounded output, and death together with the parent."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.errors import CommandFailed, DeadlineExceeded, FailedPrecondition, InvalidArgument
from agent.host import process


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_sleep(pid: int) -> bool:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].endswith(b"sleep")


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail("the condition did not come true in time")
        await asyncio.sleep(0.005)


def pid_in(path: Path) -> int:
    return int(path.read_text())


async def test_output_code_and_locale() -> None:
    done = await process.run(["sh", "-c", "echo out; echo err >&2; echo $LC_ALL; exit 3"], timeout_s=5, ok_codes=(0, 3))
    assert (done.stdout, done.stderr, done.code) == ("out\nC\n", "err\n", 3)


async def test_failure_carries_command_code_and_stderr() -> None:
    with pytest.raises(CommandFailed) as caught:
        await process.run(["sh", "-c", "echo the reason >&2; exit 7"], timeout_s=5)
    assert caught.value.exit_code == 7
    assert "the reason" in caught.value.stderr
    assert caught.value.argv[0] == "sh"


async def test_stdin_is_closed_or_fed() -> None:
    assert (await process.run(["cat"], timeout_s=5)).stdout == ""
    assert (await process.run(["cat"], timeout_s=5, input=b"x" * 300_000)).stdout == "x" * 300_000
    assert (await process.run(["true"], timeout_s=5, input=b"y" * 300_000)).code == 0


async def test_missing_program_is_named() -> None:
    with pytest.raises(FailedPrecondition, match="no-such-program-here"):
        await process.run(["no-such-program-here"], timeout_s=5)


async def test_missing_known_program_names_its_package() -> None:
    if process.find_program("mkfs.btrfs"):
        pytest.skip("mkfs.btrfs is installed here, so it cannot be missing")
    with pytest.raises(FailedPrecondition, match="btrfs-progs"):
        await process.run(["mkfs.btrfs"], timeout_s=5)


async def test_argument_with_nul_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        await process.run(["echo", "a\0b"], timeout_s=5)


async def test_argument_beyond_the_kernels_limit_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        await process.run(["echo", "x" * (4 << 20)], timeout_s=5)


@pytest.mark.parametrize("leader", ["wait", "exit 0"])
async def test_deadline_kills_the_whole_group(tmp_path: Path, leader: str) -> None:
    pid_file = tmp_path / "pid"
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await process.run(["sh", "-c", f"sleep 60 & echo $! > {pid_file}; {leader}"], timeout_s=0.3)
    assert time.monotonic() - started < 3
    await until(lambda: not alive(pid_in(pid_file)))


@pytest.mark.parametrize("steps", range(12))
async def test_cancellation_kills_and_reaps(tmp_path: Path, steps: int) -> None:
    """At whatever step of the event loop it comes: before, while or after the child is started."""
    pid_file = tmp_path / "pid"
    task = asyncio.create_task(process.run(["sh", "-c", f"echo $$ > {pid_file}; sleep 60; true"], timeout_s=60))
    for _ in range(steps):
        await asyncio.sleep(0)
    if steps > 6:
        await until(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"))
    else:
        time.sleep(0.02)  # noqa: ASYNC251 - the child goes on, the event loop does not
    started = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - started < 3
    if pid_file.exists() and pid_file.read_text():
        assert not exists(pid_in(pid_file))  # not even as a zombie


async def test_too_much_output_is_an_error_and_bounded() -> None:
    with pytest.raises(CommandFailed, match="more than"):
        await process.run(["sh", "-c", "exec cat /dev/zero"], timeout_s=20)


async def test_long_stderr_keeps_its_end() -> None:
    script = "import sys; sys.stderr.write('x' * 1_000_000 + 'the end'); sys.exit(1)"
    with pytest.raises(CommandFailed) as caught:
        await process.run([sys.executable, "-c", script], timeout_s=20)
    assert caught.value.stderr.endswith("the end")


async def test_spawned_lines_reach_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    child = await process.spawn(["sh", "-c", "echo one; echo two >&2; printf three"], log=logging.getLogger("child"))
    assert await child.wait() == 0
    assert [record.message for record in caplog.records if record.name == "child"] == ["one", "two", "three"]


async def test_terminate_is_polite_then_firm(tmp_path: Path) -> None:
    log = logging.getLogger("child")
    polite = await process.spawn(["sleep", "60"], log=log)
    assert await polite.terminate(5) == -signal.SIGTERM
    assert await polite.terminate(5) == -signal.SIGTERM  # ended already: the same answer
    ready = tmp_path / "ready"
    stubborn = await process.spawn(["sh", "-c", f"trap '' TERM; touch {ready}; while :; do sleep 60; done"], log=log)
    await until(ready.exists)
    assert await stubborn.terminate(0.1) == -signal.SIGKILL


async def test_spawned_process_takes_its_children_with_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    child = await process.spawn(
        ["sh", "-c", f"sleep 60 & echo $! > {pid_file}; exit 4"], log=logging.getLogger("child")
    )
    assert await child.wait() == 4
    await until(lambda: not alive(pid_in(pid_file)))


PARENT = """
import asyncio, logging, sys
from agent.host import process
async def main():
    child = await process.spawn(["sleep", "60"], log=logging.getLogger("child"))
    running = asyncio.create_task(process.run(["sleep", "61"], timeout_s=60))
    print(child.pid, flush=True)
    await running
asyncio.run(main())
"""


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as started:
        try:
            yield started
        finally:
            started.kill()


async def test_children_die_with_a_killed_parent(parent: subprocess.Popen[str]) -> None:
    assert parent.stdout is not None
    spawned = int(await asyncio.to_thread(parent.stdout.readline))
    await until(lambda: len(children_of(parent.pid)) == 2)
    pids = children_of(parent.pid)
    assert spawned in pids
    await until(lambda: all(map(is_sleep, pids)))
    parent.kill()
    await until(lambda: not any(map(alive, pids)))
