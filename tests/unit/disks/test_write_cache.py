"""Write caches as the kernel shows them: found by what the disk itself says, switched off, and read back."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.disks.write_cache import KernelCaches, State
from agent.errors import Unavailable
from agent.host.nvme_admin import Answer, Command, Send

NOT_SAVEABLE = 0x10D


class Controller:
    """An NVMe controller. `refuses` are the values of dword 10 of Set Features that it answers with that status."""

    def __init__(self, *, present: bool = True, on: bool = True) -> None:
        self.present, self.on, self.saved = present, on, False
        self.refuses: dict[int, int] = {}
        self.deaf = False
        """Says that it did, and does not."""
        self.away = False

    async def __call__(self, command: Command) -> Answer:
        if self.away:
            raise Unavailable("/dev/nvme0 did not answer: Input/output error")
        if command.opcode == 0x06:
            data = bytearray(command.reads)
            data[525] = 7 if self.present else 6
            return Answer(0, 0, bytes(data))
        if command.opcode == 0x0A:
            return Answer(0, int(self.on)) if self.present else Answer(0x02)
        if status := self.refuses.get(command.cdw10):
            return Answer(status)
        if not self.deaf:
            self.on, self.saved = bool(command.cdw11 & 1), bool(command.cdw10 >> 31)
        return Answer(0)


class Machine:
    """A tree of sysfs in a folder."""

    def __init__(self, folder: Path) -> None:
        self.sysfs, self.dev = folder / "sys", folder / "dev"
        self.dev.mkdir(parents=True)
        self.controllers: dict[str, Controller] = {}
        self.caches = KernelCaches(self.sysfs, self.dev, self._controller)

    def _controller(self, path: Path) -> Send:
        return self.controllers[path.name]

    def disk(self, name: str, files: dict[str, str] | None = None) -> Path:
        place = self.sysfs / "class/block" / name
        for path, text in ({"queue/write_cache": "write back"} | (files or {})).items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_text(text)
        (self.dev / name).write_text("")
        return place

    def nvme(self, name: str, *controllers: str) -> None:
        """With one controller as without native multipath, with several as with."""
        place = self.disk(name)
        for each in controllers:
            self.controllers[each] = Controller()
            (self.sysfs / "class/nvme" / each).mkdir(parents=True)
            (self.sysfs / "class/nvme" / each / "transport").write_text("pcie")
        if len(controllers) == 1:
            (place / "device").symlink_to(self.sysfs / "class/nvme" / controllers[0])
            return
        subsystem = self.sysfs / "class/nvme-subsystem/nvme-subsys0"
        subsystem.mkdir(parents=True)
        for each in controllers:
            (subsystem / each).symlink_to(self.sysfs / "class/nvme" / each)
        (place / "device").symlink_to(subsystem)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


async def test_an_nvme_cache_is_switched_off_and_saved(machine: Machine) -> None:
    machine.nvme("nvme0n1", "nvme0")
    assert (await machine.caches.look("nvme0n1")).state is State.ON
    assert machine.controllers["nvme0"].on, "looking changes nothing"
    assert (await machine.caches.switch_off("nvme0n1")).state is State.OFF
    assert (await machine.caches.look("nvme0n1")).state is State.OFF
    assert machine.controllers["nvme0"].saved


async def test_a_controller_that_cannot_save_it_is_told_for_now(machine: Machine) -> None:
    machine.nvme("nvme0n1", "nvme0")
    machine.controllers["nvme0"].refuses[0x80000006] = NOT_SAVEABLE
    assert (await machine.caches.switch_off("nvme0n1")).state is State.OFF
    assert not machine.controllers["nvme0"].saved


async def test_what_a_controller_says_it_did_is_read_back(machine: Machine) -> None:
    machine.nvme("nvme0n1", "nvme0")
    machine.controllers["nvme0"].deaf = True
    found = await machine.caches.switch_off("nvme0n1")
    assert (found.state, found.text) == (State.ON, "its volatile write cache is on: it stayed on")
    machine.controllers["nvme0"].refuses = {0x80000006: NOT_SAVEABLE, 0x06: 0x10E}
    found = await machine.caches.switch_off("nvme0n1")
    assert found.text.endswith("the controller refuses to switch it off (status 0x10e)")


async def test_every_controller_of_a_namespace_is_told(machine: Machine) -> None:
    machine.nvme("nvme0n1", "nvme0", "nvme1")
    machine.controllers["nvme0"].on = False
    assert (await machine.caches.look("nvme0n1")).state is State.ON
    assert (await machine.caches.switch_off("nvme0n1")).state is State.OFF
    assert not machine.controllers["nvme1"].on


async def test_a_controller_without_a_cache_or_without_an_answer(machine: Machine) -> None:
    machine.nvme("nvme0n1", "nvme0")
    machine.controllers["nvme0"].present = False
    assert (await machine.caches.switch_off("nvme0n1")).state is State.NONE
    machine.controllers["nvme0"].away = True
    found = await machine.caches.switch_off("nvme0n1")
    assert found.state is State.UNKNOWN
    assert "did not answer" in found.text


class Written:
    """What stands in for a file of sysfs that does something when it is written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, act: Callable[[Path, str], None]) -> None:
        plain = Path.write_text
        self.written: list[str] = []

        def write(file: Path, text: str) -> int:
            if file.name == "cache_type":
                self.written.append(text)
                act(file, text)
            return plain(file, text)

        monkeypatch.setattr(Path, "write_text", write)


def refuse(file: Path, text: str) -> None:
    raise OSError(errno.EINVAL, "Invalid argument")


@pytest.mark.parametrize(
    ("told", "written", "after"),
    [
        ("write back", "write through", State.OFF),
        ("write back, no read (daft)", "none", State.OFF),
        # These may be the kernel's own idea: the disk is told all the same.
        ("write through", "write through", State.OFF),
        ("none", "none", State.OFF),
    ],
)
async def test_a_scsi_disk_is_told_by_its_mode_page(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, told: str, written: str, after: State
) -> None:
    machine.disk("sda", {"device/scsi_disk/0:0:0:0/cache_type": told})
    before = State.ON if "back" in told else State.OFF
    assert (await machine.caches.look("sda")).state is before
    file = Written(monkeypatch, lambda file, text: None)
    assert (await machine.caches.switch_off("sda")).state is after
    assert file.written == [written]


@pytest.mark.parametrize(("told", "state"), [("write back", State.ON), ("write through", State.UNKNOWN)])
async def test_a_scsi_disk_that_takes_no_mode_page_is_not_believed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, told: str, state: State
) -> None:
    machine.disk("sda", {"device/scsi_disk/0:0:0:0/cache_type": told})
    Written(monkeypatch, refuse)
    found = await machine.caches.switch_off("sda")
    assert (found.state, "Invalid argument" in found.text) == (state, True)


async def test_a_virtio_disk_is_switched_by_its_configuration(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.disk("vdb", {"cache_type": "write back"})
    assert (await machine.caches.switch_off("vdb")).state is State.OFF
    machine.disk("vdc", {"cache_type": "write back"})
    Written(monkeypatch, refuse)
    found = await machine.caches.switch_off("vdc")
    assert (found.state, "hypervisor" in found.text) == (State.ON, True)


async def test_what_is_built_of_disks_is_as_good_as_the_worst(machine: Machine) -> None:
    machine.disk("sda", {"device/scsi_disk/0:0:0:0/cache_type": "write through"})
    machine.nvme("nvme0n1", "nvme0")
    place = machine.disk("dm-0", {"queue/write_cache": "write through"})
    for each in ("sda", "nvme0n1"):
        (place / "slaves" / each).mkdir(parents=True)
    assert (await machine.caches.look("dm-0")).state is State.ON
    assert (await machine.caches.switch_off("dm-0")).state is State.OFF
    assert not machine.controllers["nvme0"].on
    machine.controllers["nvme0"].away = True
    assert (await machine.caches.look("dm-0")).state is State.UNKNOWN


@pytest.mark.parametrize(
    ("name", "files", "state"),
    [
        ("pmem0", {"queue/write_cache": "write through"}, State.NONE),
        ("xvdb", {"queue/write_cache": "write back"}, State.ON),
        ("xvdc", {"queue/write_cache": ""}, State.UNKNOWN),
        ("loop0", {"loop/backing_file": "/disk.img", "queue/write_cache": "write through"}, State.UNKNOWN),
    ],
)
async def test_others_are_what_their_driver_says(
    machine: Machine, name: str, files: dict[str, str], state: State
) -> None:
    machine.disk(name, files)
    assert (await machine.caches.switch_off(name)).state is state


async def test_what_was_kept_back_is_written_out_or_told(machine: Machine) -> None:
    machine.nvme("nvme0n1", "nvme0")
    (machine.dev / "nvme0n1").unlink()
    found = await machine.caches.switch_off("nvme0n1")
    assert (found.state, found.text) == (
        State.UNKNOWN,
        "its write cache is off, and could not be emptied: No such file or directory",
    )
