"""`quarry disks` as a user meets it: the real program, on a recording of a machine with every kind of disk."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.cli.exit_codes import ExitCode
from agent.disks.recording import dump
from tests.unit.disks.lab import lab

ROOT = Path(__file__).resolve().parents[3]
NOBODY = 65534


def disks(*args: str, user: int | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    drop = ["setpriv", f"--reuid={user}", "--clear-groups", "--"] if user is not None else []
    argv = [*drop, sys.executable, "-m", "agent.cli.main", "disks", *args]
    env = os.environ | environment
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, cwd=ROOT, env=env)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("recording") / "lab.json"
    file.write_bytes(dump(lab().recording))
    return str(file)


def test_the_list_has_a_line_for_each_disk_with_all_reasons(recording: str) -> None:
    done = disks("list", "--recording", recording)
    assert (done.returncode, done.stderr) == (0, "")
    header, *lines = done.stdout.splitlines()
    assert header.split() == ["NAME", "TIER", "TRANSPORT", "SIZE", "ID", "MODEL", "CLAIMABLE"]
    rows = {line.split()[0]: line for line in lines}
    assert len(rows) == len(lines) == 17
    assert rows["nvme0n1"].endswith("  yes")
    assert rows["nvme0n1"].split()[1:6] == ["nvme", "nvme", "2", "GiB", "sn-labnvmea0001-f0dcb61de4a1"]
    assert "is mounted at /mnt/inuse" in rows["sda"]
    assert "has the partition sda1 (ext4)" in rows["sda"]
    assert "namespace of another machine" in rows["nvme2n1"]
    assert lines == [line.rstrip() for line in lines]


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_in_a_terminal_of_any_width_the_verdict_and_the_reasons_are_seen(recording: str, columns: int) -> None:
    if shutil.which("script") is None:
        pytest.skip("needs script, to have a terminal")
    quarry = f"{sys.executable} -m agent.cli.main disks list --recording {recording}"
    argv = ["script", "--quiet", "--return", "--command", f"stty cols {columns}; {quarry}", "/dev/null"]
    environment = os.environ | {"TERM": "xterm"}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, cwd=ROOT, env=environment)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    table, reasons = plain.replace("\r", "").split("\n\n", 1)
    verdicts = {line.split()[0]: line.split()[5] for line in table.splitlines()[1:]}
    assert (verdicts["nvme0n1"], verdicts["sda"], len(verdicts)) == ("yes", "no", 17)
    assert "is mounted at /mnt/inuse" in " ".join(reasons.split())
    assert max(map(len, plain.replace("\r", "").splitlines())) <= columns


def test_for_machines(recording: str) -> None:
    listed: list[dict[str, Any]] = json.loads(disks("list", "--recording", recording, "-o", "json").stdout)
    by_name = {disk["name"]: disk for disk in listed}
    assert by_name["sdg"]["eligible"] is True
    assert (by_name["sdg"]["tier"], by_name["sdg"]["size_bytes"]) == ("hdd", 8388608 * 512)
    assert by_name["sdh"]["reason_codes"] == ["removable", "size"]
    assert len(by_name["sdh"]["reasons"]) == 2
    assert by_name["loop0"]["id"] is None
    shown = json.loads(disks("show", "LABHDD0001", "--recording", recording, "-o", "json").stdout)
    assert shown == by_name["sdg"]


@pytest.mark.parametrize(
    "name",
    ["nvme1n1", "/dev/nvme1n1", "LABNVMEB0001", "/dev/disk/by-id/nvme-QEMU_NVMe_Ctrl_LABNVMEB0001_1"],
)
def test_show_takes_any_name_of_a_disk(recording: str, name: str) -> None:
    done = disks("show", name, "--recording", recording)
    assert done.returncode == 0, done.stderr
    shown = dict(line.split("  ", 1) for line in done.stdout.splitlines() if line[:1].strip())
    wanted = {"name": "nvme1n1", "claimable": "yes", "PCI": "0000:06:00.0", "content": "nothing"}
    assert {name: shown[name].strip() for name in wanted} == wanted


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["show", "sdx"], ExitCode.NOT_FOUND, ["disk", "sdx"]),
        (["show", "LABNVMEA0001"], ExitCode.USAGE, ["nvme0n1", "nvme0n2"]),
        (["list", "--recording", "/absent"], ExitCode.USAGE, ["/absent"]),
        (["list", "--recording", __file__], ExitCode.USAGE, ["recording", "quarry disks record"]),
        (["record", "/absent/file"], ExitCode.USAGE, ["/absent/file"]),
    ],
)
def test_what_is_wrong_is_one_line(recording: str, args: list[str], code: ExitCode, words: list[str]) -> None:
    given = [] if "--recording" in args or args[0] == "record" else ["--recording", recording]
    done = disks(*args, *given)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words)


def test_this_machine_recorded_and_looked_at_elsewhere_is_the_same(tmp_path: Path) -> None:
    file = tmp_path / "here.json"
    assert disks("record", str(file)).returncode == 0
    again = disks("record", str(file))
    assert again.returncode == ExitCode.USAGE  # nothing is written over
    recorded = json.loads(file.read_bytes())
    listed = json.loads(disks("list", "--recording", str(file), "-o", "json").stdout)
    sizes = {name: recorded["files"].get(f"class/block/{name}/size", "0") for name in recorded["folders"]["block"]}
    # Loop devices may come and go beside this test.
    wanted = {name for name, size in sizes.items() if size != "0" and not name.startswith("loop")}
    assert {disk["name"] for disk in listed if disk["transport"] != "loop"} == wanted


@pytest.mark.root
def test_without_rights_it_says_what_it_could_not_see(recording: str) -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv, to drop rights")
    full = json.loads(disks("list", "-o", "json").stdout)
    if not any(disk["transport"] in ("nvme", "sata", "sas", "scsi", "virtio") for disk in full):
        pytest.skip("this machine has no disk")
    if disks("--help", user=NOBODY).returncode != 0:
        pytest.skip("another user cannot run this Python")
    done = disks("list", user=NOBODY)
    assert done.returncode == 0
    assert "run this as root" in done.stderr
    assert "no right to read it" in done.stdout


def test_watch_begins_with_the_list_and_ends_quietly_when_nobody_reads(recording: str) -> None:
    argv = [sys.executable, "-m", "agent.cli.main", "disks", "watch", "-o", "json", "--recording", recording]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as watching:
        assert watching.stdout is not None
        assert watching.stderr is not None
        try:
            first = [json.loads(watching.stdout.readline()) for _ in range(17)]
            watching.send_signal(2)
            code, errors = watching.wait(60), watching.stderr.read()
        finally:
            watching.kill()
    assert {each["change"] for each in first} == {"added"}
    assert {each["disk"]["name"] for each in first} >= {"sda", "nvme0n2"}
    assert (code, errors) == (ExitCode.INTERRUPTED, "")
