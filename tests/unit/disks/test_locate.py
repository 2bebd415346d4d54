"""The light of a disk's slot is found in sysfs, switched on and off; where there is none, that is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.disks.locate import find, locate
from agent.errors import FailedPrecondition

PORT, DISK = "0000:00:02.0", "0000:05:00.0"


def content(file: str | Path) -> str:
    return Path(file).read_text()


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """sda sits in slot 3 of a SCSI enclosure; sdb in none; an NVMe disk in a PCIe slot whose port has lights."""
    slot = tmp_path / "devices/pci0000:00/0000:00:03.0/host0/target0:0:8/0:0:8:0/enclosure/0:0:8:0/Slot 03"
    slot.mkdir(parents=True)
    (slot / "locate").write_text("0\n")
    for name in ("sda", "sdb"):
        (tmp_path / "class/block" / name / "device").mkdir(parents=True)
    (tmp_path / "class/block/sda/device/enclosure_device:Slot 03").symlink_to(slot)
    disk = tmp_path / f"devices/pci0000:00/{PORT}/{DISK}"
    disk.mkdir(parents=True)
    (tmp_path / "bus/pci/devices").mkdir(parents=True)
    (tmp_path / "bus/pci/devices" / DISK).symlink_to(disk)
    light = tmp_path / f"class/leds/{PORT}:enclosure:locate"
    light.mkdir(parents=True)
    (light / "brightness").write_text("0\n")
    return tmp_path


async def test_a_slot_of_a_scsi_enclosure(shelf: Path) -> None:
    by = await locate("sda", "/dev/sda", (), on=True, root=shelf)
    assert by.endswith("enclosure_device:Slot 03/locate")
    assert content(by) == "1"
    await locate("sda", "/dev/sda", (), on=False, root=shelf)
    assert content(by) == "0"


@pytest.mark.parametrize("name", ["nvme0n1", ""], ids=["kernel", "user space"])
async def test_a_pcie_slot_also_of_a_disk_that_the_kernel_does_not_have(shelf: Path, name: str) -> None:
    by = await locate(name, "/dev/nvme0n1", (DISK,), on=True, root=shelf)
    assert by == str(shelf / f"class/leds/{PORT}:enclosure:locate/brightness")
    assert content(by) == "1"


@pytest.fixture
def ledctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name that takes notes, and knows sdb only."""
    programs = tmp_path / "programs"
    programs.mkdir()
    program = programs / "ledctl"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {programs}/notes\ncase "$1" in *sdb) ;; *) echo "not supported" >&2; exit 3;; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return programs / "notes"


async def test_ledctl_where_the_kernel_knows_no_light(shelf: Path, ledctl: Path) -> None:
    assert await locate("sdb", "/dev/sdb", (), on=True, root=shelf) == "ledctl"
    assert await locate("sdb", "/dev/sdb", (), on=False, root=shelf) == "ledctl"
    assert content(ledctl) == "locate=/dev/sdb\nlocate_off=/dev/sdb\n"


async def test_where_nobody_knows_a_light_that_is_said(shelf: Path, ledctl: Path) -> None:
    assert find("sdc", (), shelf) is None
    with pytest.raises(FailedPrecondition, match=r"/dev/sdc has no locate light .* ledctl: not supported"):
        await locate("sdc", "/dev/sdc", (), on=True, root=shelf)
    with pytest.raises(FailedPrecondition, match="ledctl needs a block device"):
        await locate("", "0000:06:00.0n1", ("0000:06:00.0",), on=True, root=shelf)
