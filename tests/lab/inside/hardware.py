"""The machine's disks (tests/lab/hardware.py), as `quarry disks` and the kernel tell of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .tools import run

QUARRY = [sys.executable, "-m", "agent.cli.main"]
SERIALS = {"a": "LABNVMEA0001", "b": "LABNVMEB0001", "ssd": "LABSSD0001", "hdd": "LABHDD0001"}


async def quarry(*argv: str, timeout_s: float = 300) -> str:
    return await run(*QUARRY, *argv, timeout_s=timeout_s)


async def listed(*argv: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(await quarry("disks", "list", "-o", "json", *argv))
    return found


def by_path(link: str) -> Path:
    """The device behind a link of /dev/disk/by-id, resolved now."""
    return Path("/dev/disk/by-id", link).resolve(strict=True)


def controller(serial: str) -> str:
    """PCI address of an NVMe controller that the kernel drives."""
    for folder in Path("/sys/class/nvme").iterdir():
        if (folder / "serial").read_text().strip() == serial:
            return (folder / "address").read_text().strip()
    pytest.fail(f"there is no controller {serial}")


def driver(address: str) -> str:
    link = Path("/sys/bus/pci/devices", address, "driver")
    return link.resolve().name if link.exists() else ""


def replug(address: str) -> None:
    """The kernel sees a new function, and forgets what it was told about the old one."""
    Path("/sys/bus/pci/devices", address, "remove").write_text("1")
    Path("/sys/bus/pci/rescan").write_text("1")


def give_back(address: str) -> None:
    """After a failed test: the kernel has the controller again, and its first disk is blank."""
    if driver(address) != "vfio-pci":
        return
    replug(address)
    subprocess.run(["udevadm", "settle"], check=True)
    (disk,) = Path("/sys/bus/pci/devices", address, "nvme").glob("nvme*/nvme*n1")
    subprocess.run(["blkdiscard", "--zeroout", f"/dev/{disk.name}"], check=True)
