"""The command line as a user meets it: the real program in a child process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agent.cli.exit_codes import ExitCode, exit_code
from agent.errors import NotFound, QuarryError, TransportClosed


def quarry(*args: str, **options: object) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "agent.cli.main", *args]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize(
    "command",
    [
        "standalone",
        "node",
        "controller",
        "target",
        "nodes",
        "disks",
        "volumes",
        "snapshots",
        "doctor",
        "probe",
        "demo",
        "version",
    ],
)
def test_help_of_every_command_lists_its_options(command: str) -> None:
    assert command in quarry("--help").stdout
    done = quarry(command, "--help")
    assert done.returncode == 0
    assert "--help" in done.stdout
    assert done.stderr == ""


def test_version_for_machines() -> None:
    facts = json.loads(quarry("version", "-o", "json").stdout)
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nonsense"], ["nonsense"]),
        (["target"], ["--rpc-socket"]),
        (["standalone", "--nvmf-port", "70000"], ["--nvmf-port", "65535"]),
        (["standalone", "--nvmf-address", "::"], ["nvmf_address", "can connect to"]),
        (["target", "--rpc-socket", "/s", "--state-dir", "/d", "--nvmf-address", "bogus"], ["--nvmf-address", "IPv4"]),
        (["target", "--rpc-socket", "/s", "--state-dir", "/d", "--nvmf-address", "0.0.0.0"], ["can connect to"]),
        (["probe", "[fe80::1", "nqn.2016-06.io.spdk:x"], ["ADDRESS", "[IPV6]:PORT"]),
        (["probe", "127.0.0.1:0", "nqn.2016-06.io.spdk:x"], ["ADDRESS"]),
        (["demo", "--frontend", "ublk"], ["--frontend", "nvme-tcp"]),
    ],
)
def test_wrong_usage_exits_2_and_names_the_argument(args: list[str], words: list[str]) -> None:
    done = quarry(*args)
    assert done.returncode == ExitCode.USAGE
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize("disk", ["/d", "/d:1GiB", "/d:much:nvme", "/d:1GiB:tape", "/d:-1:hdd", ""])
def test_a_wrong_disk_is_one_line_that_says_what_would_be_right(disk: str, tmp_path: Path) -> None:
    done = quarry("standalone", "--state-dir", str(tmp_path), "--csi-endpoint", "unix:///x.sock", "--file-disk", disk)
    assert done.returncode == ExitCode.USAGE
    line, end = done.stderr.split("\n")
    assert (line[:8], end) == ("quarry: ", "")
    assert "disk" in line
    assert "also wrong" not in line


def test_a_missing_settings_file_is_named(tmp_path: Path) -> None:
    done = quarry("standalone", "--config", str(tmp_path / "absent.yaml"))
    assert done.returncode in (ExitCode.USAGE, ExitCode.NOT_FOUND)
    assert "absent.yaml" in done.stderr
    assert done.stderr.count("\n") == 1


def test_nobody_listening_is_unavailable_and_debug_shows_the_trace() -> None:
    args = ["probe", "127.0.0.1:1", "nqn.2016-06.io.spdk:x"]
    done = quarry(*args)
    assert done.returncode == ExitCode.UNAVAILABLE
    assert "127.0.0.1" in done.stderr
    assert done.stderr.count("\n") == 1
    debug = quarry(*args, "--debug")
    assert debug.returncode == ExitCode.UNAVAILABLE
    assert "Traceback" in debug.stderr


def test_a_reader_that_goes_away_is_no_error() -> None:
    script = f"{sys.executable} -m agent.cli.main version | true"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30)
    assert done.stderr == ""


def test_starting_is_fast_because_the_product_is_imported_late() -> None:
    code = "import sys, agent.cli.main; print([m for m in ('grpc', 'asyncio', 'rich', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_error_has_an_exit_code_of_its_nearest_class() -> None:
    assert exit_code(NotFound("volume", "v")) == ExitCode.NOT_FOUND
    assert exit_code(TransportClosed("gone")) == ExitCode.UNAVAILABLE

    def tree(kind: type[QuarryError]) -> set[type[QuarryError]]:
        return {kind}.union(*(tree(sub) for sub in kind.__subclasses__() if sub.__module__ == kind.__module__))

    unnamed = {kind for kind in tree(QuarryError) if exit_code(kind.__new__(kind)) == ExitCode.INTERNAL}
    assert unnamed == {QuarryError}
