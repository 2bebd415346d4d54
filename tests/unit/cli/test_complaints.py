"""What goes wrong is a sentence and an exit code, whatever kind of exception it was; Python's names are for defects."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.cli.complaints import complaint
from agent.cli.exit_codes import ExitCode
from agent.errors import Busy, FailedPrecondition, NotFound

QUARRY = [sys.executable, "-m", "agent.cli.main"]
COMMANDS = [["version"], ["--help"], ["disks", "--help"], ["disks", "list", "-o", "json"], ["disks", "list"]]


def run(*arguments: str, stdout: int = subprocess.PIPE, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*QUARRY, *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**os.environ, **environment},
        timeout=60,
    )


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_output_that_cannot_be_written_is_one_sentence(arguments: list[str]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        done = run(*arguments, stdout=full)
    finally:
        os.close(full)
    assert done.stderr == "quarry: the output cannot be written: No space left on device\n"
    assert done.returncode == ExitCode.NO_SPACE


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("closed", [">&-", "<&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_inputs_and_outputs_are_no_error(closed: str, arguments: list[str]) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *QUARRY, *arguments], capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("option", ["--state-dir", "--spdk-socket", "--config"])
def test_an_empty_path_is_refused(option: str, tmp_path: Path) -> None:
    done = subprocess.run([*QUARRY, "standalone", option, ""], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == ExitCode.USAGE and "it is empty" in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_settings_is_refused(tmp_path: Path) -> None:
    deep = tmp_path / "deep.yaml"
    deep.write_text("x: " + 5000 * "[")
    for file, says in ((deep, "nested too deeply"), (Path("/dev/zero"), "has more than")):
        done = run("standalone", "--config", str(file), "--state-dir", str(tmp_path / "state"))
        assert done.returncode == ExitCode.USAGE and says in done.stderr, done.stderr


def test_a_closed_pipe_is_no_error_of_ours() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run("disks", "list", stdout=writer)
    finally:
        os.close(writer)
    assert done.stderr == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_cannot_encode_gets_what_it_can(encoding: str) -> None:
    done = run("doctor", PYTHONIOENCODING=encoding)
    assert encoding == "ascii" or "\\u2192" in done.stdout  # click takes ASCII for a mistake, and writes UTF-8
    assert "pass  kernel" in done.stdout
    assert done.stderr == ""
    refused = run("probe", "::1", "nqn-\u202ename", PYTHONIOENCODING=encoding)
    assert "Traceback" not in refused.stderr
    assert "UnicodeEncodeError" not in refused.stderr


@pytest.mark.parametrize(
    "settings", ["state_dir: 5\n", "a: [\n", 'a: "\x01"\n', "mount_roots: {a: 1}\n", "state_dir: {}\nnvmf_port: []\n"]
)
def test_settings_are_refused_without_a_word_of_python(tmp_path: Path, settings: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(settings)
    done = run("doctor", "--config", str(file))
    assert done.returncode == ExitCode.USAGE
    for word in ("<class", "<byte", "Error", "Errno"):
        assert word not in done.stderr


def test_a_folder_that_cannot_be_made_is_named() -> None:
    done = run("target", "--rpc-socket", "/proc/quarry/s.sock", "--state-dir", "/proc/quarry")
    assert done.stderr.splitlines()[-1] == "quarry: /proc/quarry: No such file or directory"
    assert done.returncode == ExitCode.PRECONDITION


def system(number: int, name: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), name)


@pytest.mark.parametrize(
    ("error", "sentence", "code"),
    [
        (system(errno.EROFS, "/var/lib/quarry/x"), "/var/lib/quarry/x: Read-only file system", ExitCode.PRECONDITION),
        (system(errno.ENOSPC), "No space left on device", ExitCode.NO_SPACE),
        (ExceptionGroup("unhandled errors in a TaskGroup", [NotFound("disk", "sda")]), "sda", ExitCode.NOT_FOUND),
        (
            ExceptionGroup("x", [ExceptionGroup("y", [Busy("one at a time")]), Busy("one at a time")]),
            "one at a time",
            ExitCode.BUSY,
        ),
        (
            ExceptionGroup("x", [KeyError("k"), FailedPrecondition("a disk is missing")]),
            "a disk is missing; defect",
            ExitCode.PRECONDITION,
        ),
        (ExceptionGroup("x", [ValueError("v")]), "defect: ValueError: v", ExitCode.INTERNAL),
        (system(errno.EBADF), "defect: OSError", ExitCode.INTERNAL),
    ],
    ids=range(7),
)
def test_any_exception(error: Exception, sentence: str, code: ExitCode) -> None:
    said, found = complaint(error)
    assert sentence in said
    assert "TaskGroup" not in said
    assert said.count("one at a time") <= 1
    assert found == code
