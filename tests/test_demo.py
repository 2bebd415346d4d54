"""`quarry demo` as a user runs it, in a child process: what it shows, and that nothing of it stays, however it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import psutil
import pytest

from agent.cli.exit_codes import ExitCode
from agent.spdk import bdev, lvol, nvmf
from agent.spdk.client import Client

from .contract.targets import Target, find_spdk_tgt

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 60
NOBODY = 65534
CAN_RUN = "import agent, grpc, os, sys; sys.exit(not os.access(sys.executable, os.X_OK))"
"""setpriv starts a program while it still has root's capabilities: starting alone proves nothing."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)

KERNEL_STEPS = "start disks create publish stage mount write remount verify expand stats unmount unpublish delete stop"
USER_STEPS = (
    "start disks create publish fence connect write reconnect verify expand stats disconnect unpublish delete stop"
)


@dataclass
class Sandbox:
    """A temporary folder that the demo's own is made in, and the interpreter it is run with."""

    folder: Path
    argv: list[str]
    env: dict[str, str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *args: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*self.argv, "-m", "agent.cli.main", "demo", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=self.env,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def left(self) -> list[str]:
        """What of the demo is still there: mounts, loop devices, processes, files."""
        mark = str(self.folder)
        found = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if mark in line]
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            try:
                if mark in backing.read_text():
                    found.append(str(backing))
            except OSError:
                continue
        for process in psutil.process_iter(["pid", "cmdline"]):
            if any(mark in argument for argument in process.info["cmdline"] or []):
                found.append(f"process {process.info['pid']} {process.info['cmdline']}")
        return found + [str(path) for path in self.folder.iterdir()]


@pytest.fixture
def make_sandbox() -> Iterator[Callable[..., Sandbox]]:
    made: list[Sandbox] = []

    def make(argv: list[str], **env: str) -> Sandbox:
        folder = Path(tempfile.mkdtemp(prefix="qdt-", dir="/tmp"))
        folder.chmod(0o777)
        sandbox = Sandbox(folder, argv, {**os.environ, "TMPDIR": str(folder), **env})
        made.append(sandbox)
        return sandbox

    yield make
    for sandbox in made:
        for process in sandbox.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            if str(sandbox.folder) in (point := line.split()[4]):
                subprocess.run(["umount", "--lazy", point], check=False)
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            if str(sandbox.folder) in backing.read_text():
                subprocess.run(["losetup", "--detach", f"/dev/{backing.parent.parent.name}"], check=False)
        shutil.rmtree(sandbox.folder, ignore_errors=True)


@pytest.fixture
def kernel(make_sandbox: Callable[..., Sandbox]) -> Sandbox:
    """Runs the demo as we are; skips unless it can have a kernel block device."""
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts and loop devices")
    if subprocess.run(["losetup", "--find"], capture_output=True, check=False).returncode:
        pytest.skip("needs loop devices: losetup --find fails")
    return make_sandbox([sys.executable])


@pytest.fixture
def unprivileged(make_sandbox: Callable[..., Sandbox]) -> Sandbox:
    """Runs the demo as nobody when we are root, else as we are."""
    if os.geteuid() != 0:
        return make_sandbox([sys.executable])
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv (util-linux) to become an unprivileged user")
    become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    # Our own interpreter may be in root's home: then any of the same version with our packages will do.
    path = f"{ROOT}{os.pathsep}{sysconfig.get_path('purelib')}"
    same = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for python in (sys.executable, f"/usr/bin/{same}", f"/usr/local/bin/{same}"):
        argv = [*become, python]
        env = {**os.environ, "PYTHONPATH": path}
        if not subprocess.run([*argv, "-c", CAN_RUN], env=env, cwd="/", capture_output=True, check=False).returncode:
            return make_sandbox(argv, PYTHONPATH=path, PYTHONDONTWRITEBYTECODE="1", HOME="/nonexistent")
    pytest.skip(f"user {NOBODY} can run neither {sys.executable} nor /usr/bin/{same} with our packages")


LOOKS = {"bdev_lvol_get_lvstores", "spdk_get_version", "bdev_get_iostat"}
"""What the agent asks the target at intervals; a step may be under way then."""


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    return process.communicate(timeout=DEADLINE_S)


def wait_for_line(process: subprocess.Popen[str], begins: str) -> None:
    """Read the output up to the line that begins so. pytest-timeout bounds it."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith(begins):
            return
    raise AssertionError(f"ended before {begins!r}: {''.join(seen)} {process.communicate()[1]}")


def test_with_a_kernel_block_device(kernel: Sandbox) -> None:
    process = kernel.start("-o", "json", "--frontend", "loop")
    out, err = finish(process)
    assert process.returncode == 0, err
    run = json.loads(out)
    assert (run["frontend"], run["ok"], run["failed"]) == ("loop", True, None)
    assert [step["name"] for step in run["steps"]] == KERNEL_STEPS.split()
    steps = {step["name"]: step for step in run["steps"]}
    assert "bdev_lvol_create" in steps["create"]["spdk_calls"]
    assert "nvmf_subsystem_add_host" in steps["publish"]["spdk_calls"]
    assert "bdev_lvol_resize" in steps["expand"]["spdk_calls"]
    assert steps["write"]["spdk_calls"].keys() <= LOOKS
    assert "/dev/loop" in steps["stage"]["detail"]
    assert kernel.left() == []


def test_plain_output_has_a_line_and_a_row_for_every_step(kernel: Sandbox) -> None:
    process = kernel.start("--data-mib", "4")
    out, err = finish(process)
    assert (process.returncode, err) == (0, "")
    lines, table = out.split("step  ", 1)
    for name in KERNEL_STEPS.split():
        assert f"\nok     {name} " in lines
        assert f"\n{name} " in table
    assert "\x1b" not in out
    assert kernel.left() == []


def test_without_root_it_goes_through_user_space_and_says_so(unprivileged: Sandbox) -> None:
    process = unprivileged.start()
    out, err = finish(process)
    assert (process.returncode, err) == (0, ""), out
    assert "not root" in out
    assert "user space" in out
    for name in USER_STEPS.split():
        assert f"\nok     {name} " in out
    assert unprivileged.left() == []


def test_a_frontend_that_cannot_be_is_refused_with_its_reason(unprivileged: Sandbox) -> None:
    process = unprivileged.start("--frontend", "loop")
    _, err = finish(process)
    assert process.returncode == ExitCode.PRECONDITION
    assert "not root" in err
    assert err.count("\n") == 1
    assert unprivileged.left() == []


@pytest.mark.parametrize(
    ("after", "number"),
    # Every place once, the signals in turn.
    list(zip(["Everything", *(f"ok     {name} " for name in KERNEL_STEPS.split()[:-2])], cycle(SIGNALS), strict=False)),
)
def test_interrupted_after_any_step_nothing_is_left(kernel: Sandbox, after: str, number: signal.Signals) -> None:
    process = kernel.start("--frontend", "loop", "--data-mib", "16")
    wait_for_line(process, after)
    os.killpg(process.pid, number)  # to the whole group, as a terminal does
    _, err = finish(process)
    assert process.returncode == 128 + number, err
    assert f"interrupted ({number.name})" in err
    assert "Traceback" not in err
    assert kernel.left() == []


@pytest.mark.parametrize("delay_s", [0.0, 0.7])
def test_interrupted_at_any_moment_nothing_is_left(kernel: Sandbox, delay_s: float) -> None:
    process = kernel.start("--frontend", "loop")
    wait_for_line(process, "Everything")
    time.sleep(delay_s)  # the moment is the input of the test
    for _ in range(3):  # an impatient user
        process.send_signal(signal.SIGINT)
    _, err = finish(process)
    assert process.returncode in (0, ExitCode.INTERRUPTED), err
    assert kernel.left() == []


@pytest.mark.parametrize("after", ["Everything", "ok     connect ", "ok     expand "])
def test_interrupted_in_user_space_nothing_is_left(unprivileged: Sandbox, after: str) -> None:
    process = unprivileged.start("--data-mib", "16")
    wait_for_line(process, after)
    process.terminate()
    _, err = finish(process)
    assert process.returncode == ExitCode.TERMINATED, err
    assert unprivileged.left() == []


def test_two_beside_each_other(make_sandbox: Callable[..., Sandbox]) -> None:
    sandboxes = [make_sandbox([sys.executable]) for _ in range(2)]
    processes = [sandbox.start("--frontend", "user", "--data-mib", "8") for sandbox in sandboxes]
    for sandbox, process in zip(sandboxes, processes, strict=True):
        _, err = finish(process)
        assert process.returncode == 0, err
        assert sandbox.left() == []


def test_a_reader_that_goes_away_leaves_nothing(make_sandbox: Callable[..., Sandbox]) -> None:
    sandbox = make_sandbox([sys.executable])
    process = sandbox.start("--frontend", "user", "--data-mib", "8")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    process.wait(DEADLINE_S)
    assert process.returncode != 0
    assert sandbox.left() == []
    assert "Traceback" not in (process.stderr.read() if process.stderr else "")


@pytest.fixture(scope="module")
def spdk_target() -> Iterator[Target]:
    if find_spdk_tgt() is None:
        pytest.skip("needs a real target: spdk_tgt not found (SPDK_TGT or PATH)")
    target = Target("real")
    try:
        target.start()
        yield target
    finally:
        target.close()


async def contents(socket_path: Path) -> list[str]:
    """Everything in a target that has a name."""
    rpc = Client(socket_path)
    await rpc.start()
    try:
        await rpc.wait_connected(10)
        subsystems = [subsystem.nqn for subsystem in await nvmf.list_subsystems(rpc)]
        return [b.name for b in await bdev.list_all(rpc)] + [s.name for s in await lvol.list_lvstores(rpc)] + subsystems
    finally:
        await rpc.close()


@pytest.mark.parametrize("interrupt_after", [None, "Everything", "ok     write "])
async def test_a_running_spdk_target_is_given_everything_back(
    spdk_target: Target, make_sandbox: Callable[..., Sandbox], interrupt_after: str | None
) -> None:
    sandbox = make_sandbox([sys.executable])
    before = await contents(spdk_target.socket_path)
    process = sandbox.start("--frontend", "user", "--data-mib", "8", "--spdk-socket", str(spdk_target.socket_path))
    if interrupt_after is not None:
        wait_for_line(process, interrupt_after)
        process.send_signal(signal.SIGINT)
    _, err = finish(process)
    assert process.returncode == (ExitCode.INTERRUPTED if interrupt_after else 0), err
    assert "clean-up" not in err
    assert await contents(spdk_target.socket_path) == before
    assert sandbox.left() == []
