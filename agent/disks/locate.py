"""The locate light of a disk's slot, where the kernel knows it: SCSI enclosures, and PCIe slots with NPEM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agent.errors import FailedPrecondition, Unavailable
from agent.host import ledctl

SYSFS = Path("/sys")


class Light:
    """A file of sysfs that is written 1 and 0."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def set(self, on: bool) -> None:
        try:
            self.path.write_text("1" if on else "0")
        except PermissionError as error:
            raise FailedPrecondition(f"{self.path} cannot be written to: run this as root") from error
        except OSError as error:
            raise Unavailable(f"the enclosure did not take it: {self.path}: {error.strerror}") from error


def find(name: str, pci_addresses: Sequence[str], root: Path = SYSFS) -> Light | None:
    """The light of the block device `name` ("" for one that the kernel does not have), or of a PCI function.

    A SCSI device links to its place in the enclosure (drivers/misc/enclosure.c); a PCIe port, or the disk itself, has
    LEDs named after its address (PCIe 6.0 7.9.19, Linux 6.13).
    """
    places = [*(root / "class/block" / name / "device").glob("enclosure_device:*")] if name else []
    for place in places:
        if (place / "locate").exists():
            return Light(place / "locate")
    for address in pci_addresses:
        for function in _upwards(root, address):
            light = root / "class/leds" / f"{function}:enclosure:locate" / "brightness"
            if light.exists():
                return Light(light)
    return None


def _upwards(root: Path, address: str) -> list[str]:
    """A function and the ports above it: the slot's lights belong to the port."""
    try:
        place = (root / "bus/pci/devices" / address).resolve(strict=True)
    except OSError:
        return [address]
    above = place.parent.name
    return [address, above] if above.count(":") == 2 else [address]


async def locate(name: str, node: str, pci_addresses: Sequence[str], *, on: bool, root: Path = SYSFS) -> str:
    """Switch the light on or off, by sysfs or else by ledctl. Returns by which.

    Raises FailedPrecondition when neither can: not every enclosure has lights, or tells of them.
    """
    light = find(name, pci_addresses, root)
    if light is not None:
        light.set(on)
        return str(light.path)
    if not name:
        problem = "ledctl needs a block device, which a disk of the target is not"
    elif not ledctl.is_installed():
        problem = "the program ledctl, which knows more of them, is not on this machine (Debian package ledmon)"
    else:
        problem = await ledctl.locate(node, on=on)
        if not problem:
            return "ledctl"
    raise FailedPrecondition(
        f"{node} has no locate light that the kernel knows of (/sys/class/enclosure, /sys/class/leds); {problem}"
    )
