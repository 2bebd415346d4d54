"""PCI functions as sysfs shows them, and the three files by which one is moved to another driver of the kernel."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from agent.errors import FailedPrecondition, Unavailable

SYSFS = Path("/sys")

NVME_CLASS = 0x010802
"""Class code of NVMe I/O controllers (PCI Code and ID Assignment, mass storage)."""

KERNEL_DRIVER = "nvme"

_DEVICES = "bus/pci/devices"
_CONTROLLER = re.compile(r"nvme\d+")
_NAMESPACE = re.compile(r"nvme\d+(c\d+)?n\d+")


@dataclass(frozen=True, slots=True)
class Function:
    """One PCI function. `driver` is "" while none has it, `override` the only driver that may take it ("": any)."""

    address: str
    class_code: int
    ids: str
    """Vendor and device, like `1b36:0010`."""
    driver: str = ""
    override: str = ""
    iommu_group: str = ""
    """"" without an IOMMU. The no-IOMMU mode of vfio makes up a group once it has the function."""

    @property
    def is_nvme(self) -> bool:
        return self.class_code == NVME_CLASS


@dataclass(frozen=True, slots=True)
class Controller:
    """An NVMe controller that the kernel's driver has. `namespaces` are block devices, or paths to such."""

    name: str
    model: str
    serial: str
    namespaces: tuple[str, ...]


class Pci:
    """The PCI bus below `root`. Reading never fails: what is gone or unreadable is absent."""

    def __init__(self, root: Path = SYSFS) -> None:
        self._root = root

    def function(self, address: str) -> Function | None:
        here = f"{_DEVICES}/{address}"
        if not address or not (self._root / here).exists():
            return None
        override = self._read(f"{here}/driver_override")
        return Function(
            address,
            int(self._read(f"{here}/class") or "0", 16) & 0xFFFFFF,
            ":".join(self._read(f"{here}/{name}").removeprefix("0x") for name in ("vendor", "device")),
            self._link(f"{here}/driver"),
            "" if override == "(null)" else override,
            self._link(f"{here}/iommu_group"),
        )

    def neighbours(self, function: Function) -> tuple[Function, ...]:
        """The other functions of its IOMMU group, which the IOMMU cannot keep apart from it."""
        if not function.iommu_group:
            return ()
        members = self._entries(f"kernel/iommu_groups/{function.iommu_group}/devices")
        found = (self.function(member) for member in members if member != function.address)
        return tuple(each for each in found if each is not None)

    def translates(self, function: Function) -> bool:
        """Whether an IOMMU stands between the function and memory, so that physical addresses mean nothing to it."""
        group = function.iommu_group
        return bool(group) and self._read(f"kernel/iommu_groups/{group}/type") != "identity"

    def has_driver(self, name: str) -> bool:
        return (self._root / "bus/pci/drivers" / name).exists()

    @property
    def allows_no_iommu(self) -> bool:
        """Whether vfio may be used without an IOMMU (module parameter enable_unsafe_noiommu_mode)."""
        return self._read("module/vfio/parameters/enable_unsafe_noiommu_mode") in ("Y", "1")

    def controller(self, address: str) -> Controller | None:
        """The controller on a function; None when the kernel's driver does not have it."""
        here = f"{_DEVICES}/{address}/nvme"
        name = next((entry for entry in self._entries(here) if _CONTROLLER.fullmatch(entry)), None)
        if name is None:
            return None
        namespaces = tuple(entry for entry in self._entries(f"{here}/{name}") if _NAMESPACE.fullmatch(entry))
        return Controller(name, self._read(f"{here}/{name}/model"), self._read(f"{here}/{name}/serial"), namespaces)

    def nsid(self, namespace: str) -> int:
        """The namespace id of a block device; 0: not known. The number in its name is another one."""
        text = self._read(f"class/block/{namespace}/nsid")
        return int(text) if text.isdecimal() else 0

    def nodes(self, address: str) -> tuple[str, ...]:
        """Device nodes through which a program has this function, by vfio or uio."""
        here, found = f"{_DEVICES}/{address}", list[str]()
        found += [f"/dev/{entry}" for entry in self._entries(f"{here}/uio")]
        found += [f"/dev/vfio/devices/{entry}" for entry in self._entries(f"{here}/vfio-dev")]
        if group := self._link(f"{here}/iommu_group"):
            found += [f"/dev/vfio/{group}", f"/dev/vfio/noiommu-{group}"]
        return tuple(found)

    # --- what changes something; each may be repeated ---

    def override(self, address: str, driver: str) -> None:
        """Let only this driver take the function; "": any that fits."""
        self._write(f"{_DEVICES}/{address}/driver_override", f"{driver}\n")

    def unbind(self, address: str) -> None:
        """Take the function from its driver. Returns when the driver has let go."""
        if (self._root / _DEVICES / address / "driver").exists():
            self._write(f"{_DEVICES}/{address}/driver/unbind", address)

    def probe(self, address: str) -> None:
        """Offer the function to the drivers. Which one took it, `function` tells."""
        self._write("bus/pci/drivers_probe", address)

    def _write(self, path: str, text: str) -> None:
        try:
            with (self._root / path).open("wb", buffering=0) as file:
                file.write(text.encode())
        except PermissionError as error:
            raise FailedPrecondition(f"{self._root / path} cannot be written to: run this as root") from error
        except OSError as error:
            raise Unavailable(f"{self._root / path} refuses {text.strip()!r}: {error.strerror}") from error

    def _read(self, path: str) -> str:
        try:
            return (self._root / path).read_text(errors="replace").strip()
        except OSError:
            return ""

    def _link(self, path: str) -> str:
        try:
            return os.path.basename(os.readlink(self._root / path))  # noqa: PTH115, PTH119 - text of the kernel
        except OSError:
            return ""

    def _entries(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(self._root / path))  # noqa: PTH208 - names, not paths
        except OSError:
            return []
