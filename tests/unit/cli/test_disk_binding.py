"""`quarry disks bind` and `unbind` as a user meets them on any machine: what they refuse, how bound disks are shown."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from agent.cli.exit_codes import ExitCode
from tests.unit.disks.test_binding import A, World, bind
from tests.unit.disks.test_health import SMART

from .test_disks import disks


def block_device() -> str:
    listed = json.loads(disks("list", "-o", "json").stdout)
    found = [str(disk["name"]) for disk in listed if disk["transport"] != "nvme"]
    return found[0] if found else pytest.skip("no block device that is no NVMe disk")


def test_a_disk_that_is_no_nvme_disk_is_refused_with_what_would_be() -> None:
    done = disks("bind", block_device(), "--dry-run")
    assert done.returncode == ExitCode.PRECONDITION
    assert "only NVMe disks on the PCI bus have a driver in user space" in done.stderr


def test_a_disk_that_is_not_there_is_not_found() -> None:
    assert disks("bind", "no-such-disk", "--yes").returncode == ExitCode.NOT_FOUND


async def test_bound_disks_stay_in_the_list(tmp_path: Path) -> None:
    await bind(world := World(tmp_path))
    assert world.notes == tmp_path / "bindings"
    listed = json.loads(disks("list", "-o", "json", "--state-dir", str(tmp_path)).stdout)
    mine = {disk["name"]: disk for disk in listed if disk["driver"] == "userspace"}
    assert set(mine) == {f"{A}n1", f"{A}n2"}
    assert {disk["bdev"][-2:] for disk in mine.values()} == {"n1", "n2"}
    shown = disks("show", f"{A}n2", "--state-dir", str(tmp_path))
    assert "userspace, with driver vfio-pci" in shown.stdout
    line = next(line for line in disks("list", "--state-dir", str(tmp_path)).stdout.splitlines() if f"{A}n1" in line)
    assert line.split()[1:4] == ["nvme", "nvme", "(userspace)"]


async def test_what_giving_back_would_do_is_shown(tmp_path: Path) -> None:
    await bind(World(tmp_path))
    done = disks("unbind", A, "--dry-run", "-o", "json", "--state-dir", str(tmp_path))
    document = json.loads(done.stdout)
    assert (document["done"], document["pci_address"], len(document["disks"])) == (False, A, 2)
    assert disks("unbind", "0000:77:00.0", "--yes", "--state-dir", str(tmp_path)).returncode == ExitCode.NOT_FOUND


def test_the_health_of_a_disk_is_shown(tmp_path: Path) -> None:
    """smartctl is a program that prints what a failing disk made it print; its exit code tells about the disk."""
    answer = SMART / "sata-hdd-failing.json"
    smartctl = tmp_path / "smartctl"
    smartctl.write_text(f"#!/bin/sh\ncat {answer}\nexit 24\n")
    smartctl.chmod(0o755)
    name = block_device()
    path = f"{tmp_path}:{os.environ['PATH']}"
    document = json.loads(disks("show", name, "-o", "json", PATH=path).stdout)
    assert (document["health"], document["health_measures"]["pending"]) == ("Failing", 312)
    assert "it expects to fail soon (SMART self-assessment)" in document["health_reasons"]
    shown = disks("show", name, PATH=path).stdout
    assert "Failing: 2944 sectors are reallocated" in shown
    assert "31 °C, 20000 hours on" in shown
