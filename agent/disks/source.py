"""Where facts about block devices come from: one small interface.

`machine.py` implements it with udev and sysfs, `recording.py` with what was recorded on some machine. Reading never
fails: what is gone, unreadable or nonsense is absent, and whoever interprets decides what that means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from agent.host.blkid import Content

Number = tuple[int, int]
"""Major and minor of a block device."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened to `disk`, the kernel name of a whole disk. "" says that events were lost: look at all."""

    action: str
    disk: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Who uses block devices, of the machine as a whole: read once for many disks."""

    mounts: Mapping[Number, tuple[str, ...]] = field(default_factory=dict)
    swaps: frozenset[Number] = frozenset()
    loops: Mapping[Number, tuple[str, ...]] = field(default_factory=dict)
    """Loop devices that show a block device (rather than a file), by that device."""
    unseen: tuple[str, ...] = ()
    """What could not be looked at, in words."""
    volumes: Mapping[str, str] = field(default_factory=dict)
    """Volumes by the kernel name of the device that shows them, as far as the agent here has notes of it."""


@dataclass(frozen=True, slots=True)
class Look:
    """What lies on a device. `content` is None when that is not known: `problem` says why, if it was tried."""

    content: Content | None = None
    problem: str = ""
    denied: bool = False
    """The right to read it is missing: whoever runs this with more rights sees more."""


NOT_LOOKED = Look()


PROPERTIES = (
    *("DEVNAME", "DEVLINKS", "DISKSEQ"),
    *("ID_MODEL", "ID_REVISION", "ID_SERIAL", "ID_SERIAL_SHORT", "ID_SCSI_SERIAL", "ID_NSID"),
    *("ID_WWN", "ID_WWN_WITH_EXTENSION", "MD_UUID", "ID_ATA_ROTATION_RATE_RPM"),
    *("ID_FS_TYPE", "ID_PART_TABLE_TYPE", "DM_MULTIPATH_DEVICE_PATH"),
)
"""What udev is asked for. By name: a list of all cannot be had when one of the names is no UTF-8."""


class Source(Protocol):
    """The block devices of one machine. Paths are below /sys; the methods that are not `async` may block shortly."""

    def names(self) -> Sequence[str]:
        """Kernel names of all whole block devices, sorted (no partitions)."""

    def sys_path(self, name: str) -> str:
        """Place in the tree of devices, like `devices/pci0000:00/.../block/sda`. "" when there is no such device."""

    def properties(self, name: str) -> Mapping[str, str]:
        """Those of `PROPERTIES` that udev has for a device or a partition. What is not valid UTF-8 is left out."""

    def read(self, path: str) -> str | None:
        """A file of sysfs without the white space around it; None: absent."""

    def entries(self, path: str) -> Sequence[str]:
        """Names in a folder of sysfs, sorted; none when it is absent."""

    def usage(self) -> Usage:
        """Mounts, swap and loop devices of now."""

    async def look(self, name: str, node: str) -> Look:
        """What lies on the device with this node in /dev. Only reads."""

    def subscribe(self, on_event: Callable[[Event], None]) -> Callable[[], None]:
        """Have `on_event` called in the running event loop for every event; the result ends it."""
