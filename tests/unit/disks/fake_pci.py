"""A PCI bus as a tree of files below a temporary folder, with a kernel that does what is written into them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from agent.disks.pci import Pci

from .fake_machine import FakeMachine
from .lab import nvme

DEVICES = "bus/pci/devices"


class FakePci(Pci):
    """`machine` loses and gets back the namespaces of controllers that are moved. `writes` is what was written."""

    def __init__(self, root: Path, machine: FakeMachine) -> None:
        super().__init__(root)
        self.root = root
        self.machine = machine
        self.writes: list[tuple[str, str]] = []
        self.refusing: set[str] = set()
        """Drivers that take nothing."""
        self.effect: Callable[[], AbstractContextManager[None]] = nullcontext
        """Around every write."""
        self._namespaces: dict[str, list[tuple[str, int, str, int]]] = {}
        for driver in ("nvme", "vfio-pci", "uio_pci_generic"):
            (root / "bus/pci/drivers" / driver).mkdir(parents=True)

    def plug(self, address: str, namespaces: list[tuple[int, int, str, int]], group: str = "15") -> None:
        """A controller; namespaces as arguments of `lab.nvme`: number of controller and namespace, serial, sectors."""
        self._namespaces[address] = [(f"nvme{each[0]}n{each[1]}", *each[1:]) for each in namespaces]
        self.add(address, "0x010802", group)
        self._kernel_takes(address)

    def add(self, address: str, class_code: str, group: str = "15", driver: str = "") -> None:
        here = self.root / DEVICES / address
        here.mkdir(parents=True)
        files = {"class": class_code, "vendor": "0x1b36", "device": "0x0010", "driver_override": "(null)"}
        for name, text in files.items():
            (here / name).write_text(text + "\n")
        if group:
            members = self.root / "kernel/iommu_groups" / group
            (members / "devices" / address).mkdir(parents=True)
            (members / "type").write_text("DMA-FQ\n")
            (here / "iommu_group").symlink_to(members)
        if driver:
            self.set_driver(address, driver)

    def set_driver(self, address: str, driver: str) -> None:
        folder = self.root / "bus/pci/drivers" / driver
        folder.mkdir(exist_ok=True)
        (self.root / DEVICES / address / "driver").symlink_to(folder)

    def reboot(self) -> None:
        """Every function is at the kernel's own driver again."""
        for address in self._namespaces:
            (self.root / DEVICES / address / "driver_override").write_text("(null)\n")
            if self.driver(address) != "nvme":
                self._let_go(address)
                self._kernel_takes(address)

    def driver(self, address: str) -> str:
        function = self.function(address)
        return function.driver if function else "gone"

    # --- the kernel ---

    def _write(self, path: str, text: str) -> None:
        with self.effect():
            self._do(path, text)

    def _do(self, path: str, text: str) -> None:
        self.writes.append((path, text))
        name = Path(path).name
        if name == "driver_override":
            (self.root / path).write_text(text if text.strip() else "(null)\n")
        elif name == "unbind":
            self._let_go(path.split("/")[3])
        elif name == "drivers_probe":
            self._probe(text)

    def _let_go(self, address: str) -> None:
        here = self.root / DEVICES / address
        (here / "driver").unlink(missing_ok=True)
        shutil.rmtree(here / "nvme", ignore_errors=True)
        for name, *_ in self._namespaces[address]:
            if name in self.machine.recording.sys_paths:
                self.machine.pull(name)

    def _probe(self, address: str) -> None:
        function = self.function(address)
        if function is None or function.driver:
            return
        driver = function.override or "nvme"
        if driver in self.refusing:
            return
        if driver == "nvme":
            self._kernel_takes(address)
        else:
            self.set_driver(address, driver)

    def _kernel_takes(self, address: str) -> None:
        self.set_driver(address, "nvme")
        for name, number, serial, sectors in self._namespaces[address]:
            controller = int(name[4 : name.index("n", 4)])
            here = self.root / DEVICES / address / "nvme" / f"nvme{controller}"
            (here / name).mkdir(parents=True)
            (here / "model").write_text("QEMU NVMe Ctrl   \n")
            (here / "serial").write_text(f"{serial}\n")
            block = self.root / "class/block" / name
            block.mkdir(parents=True, exist_ok=True)
            (block / "nsid").write_text(f"{number}\n")
            disk = nvme(controller, number, serial, sectors)
            disk.files["device/address"] = address
            disk.sys_path = f"devices/pci0000:00/0000:00:02.0/{address}/nvme/nvme{controller}/{name}"
            self.machine.plug(disk)
