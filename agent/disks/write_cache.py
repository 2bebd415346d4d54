"""The volatile write cache of a disk: whether it has one, and switching it off.

FLUSH does not reach a disk under a pool (docs/durability.md), so what an application has synced is safe at a power cut
only on a disk that has no such cache, or none that is on. Each kind of disk is asked itself; what the kernel believes
of it (queue/write_cache) can be set without the disk being told, and is used only where there is nobody else to ask.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from agent.disks import nvme_cache
from agent.errors import QuarryError
from agent.host.nvme_admin import Send, to_controller


class State(StrEnum):
    """How far a disk's word "written" can be relied on. The worst of several is the one that comes last."""

    NONE = "NoVolatileCache"
    OFF = "SwitchedOff"
    UNKNOWN = "NotKnown"
    ON = "VolatileCacheOn"

    @property
    def is_safe(self) -> bool:
        return self in (State.NONE, State.OFF)


@dataclass(frozen=True, slots=True)
class WriteCache:
    """`text`: for a person, of the form "its write cache ..."."""

    state: State
    text: str


NONE = WriteCache(State.NONE, "it has no volatile write cache")
OFF = WriteCache(State.OFF, "its volatile write cache is switched off")
ON = WriteCache(State.ON, "its volatile write cache is on")


def worst(found: Iterable[WriteCache]) -> WriteCache:
    """Of a disk that is reached in several ways, or made of several disks."""
    order = list(State)
    nothing = WriteCache(State.UNKNOWN, "nothing tells whether it has a volatile write cache")
    return max(found, key=lambda each: order.index(each.state), default=nothing)


class KernelCaches:
    """The caches of disks that the kernel drives, by their names (nvme0n1, sda, dm-0).

    `sysfs`, `dev` and `controller` are replaced in tests.
    """

    def __init__(
        self,
        sysfs: Path = Path("/sys"),
        dev: Path = Path("/dev"),
        controller: Callable[[Path], Send] = to_controller,
    ) -> None:
        self._sysfs = sysfs
        self._dev = dev
        self._controller = controller

    async def look(self, name: str) -> WriteCache:
        """How the cache is now; changes nothing. Never fails: then it is not known, and the text says why."""
        return await self._guarded(name, switch=False)

    async def switch_off(self, name: str) -> WriteCache:
        """Switch the cache off, for good where the disk can keep it, and write out what it holds; how it is then.

        Also a disk that is said to have none is told: the kernel assumes that of a disk which gives no answer.
        """
        found = await self._guarded(name, switch=True)
        if found.state is State.OFF:
            try:
                await asyncio.to_thread(_flush, self._dev / name.replace("!", "/"))
            except OSError as error:
                return WriteCache(State.UNKNOWN, f"its write cache is off, and could not be emptied: {error.strerror}")
        return found

    async def _guarded(self, name: str, *, switch: bool) -> WriteCache:
        try:
            return await self._ask(name, switch=switch)
        except QuarryError as error:
            return WriteCache(State.UNKNOWN, f"its write cache cannot be asked for: {error}")
        except OSError as error:
            return WriteCache(State.UNKNOWN, f"its write cache cannot be asked for: {error.strerror}")

    async def _ask(self, name: str, *, switch: bool) -> WriteCache:
        folder = self._sysfs / "class/block" / name
        if below := _names(folder / "slaves"):
            return worst([await self._ask(each, switch=switch) for each in below])
        if (folder / "loop").is_dir():
            return WriteCache(State.UNKNOWN, "it is a loop device: what its file's filesystem keeps back can be lost")
        if controllers := _controllers(folder):
            act = nvme_cache.switch_off if switch else nvme_cache.look
            return worst([of_nvme(await act(self._controller(self._dev / each))) for each in controllers])
        if files := sorted((folder / "device/scsi_disk").glob("*/cache_type")):
            return await asyncio.to_thread(_scsi, files[0], switch=switch)
        if (folder / "cache_type").exists():
            return await asyncio.to_thread(_virtio, folder / "cache_type", switch=switch)
        return _believed(folder / "queue/write_cache")


def of_nvme(found: nvme_cache.Found) -> WriteCache:
    """What a controller told."""
    if not found.present:
        return NONE
    if not found.on:
        return OFF
    return WriteCache(State.ON, f"{ON.text}: {found.problem}") if found.problem else ON


def _scsi(file: Path, *, switch: bool) -> WriteCache:
    """SCSI and ATA: the Caching mode page as the kernel has read it (SBC-3 6.5.5; Linux Documentation/scsi/sd).

    Writing sends a MODE SELECT of the saved page and reads the page again. Two things look like "write through" and
    are none: what was set as "temporary", for the kernel only, and what it assumes of a disk without the page. Both
    show when it is written: the first becomes true, the second is refused (EINVAL).
    """
    told = _read(file)
    if switch:
        wanted = "none" if told in ("none", "write back, no read (daft)") else "write through"
        try:
            file.write_text(wanted)
        except OSError as error:
            if told.startswith("write back"):
                return WriteCache(State.ON, f"{ON.text}, and the disk refuses to switch it off ({error.strerror})")
            text = f"the kernel takes it for {told!r}, and the disk itself does not confirm it ({error.strerror})"
            return WriteCache(State.UNKNOWN, text)
        told = _read(file)
    return {"write through": OFF, "none": OFF}.get(told, ON)


def _virtio(file: Path, *, switch: bool) -> WriteCache:
    """virtio-blk: the file reads the device's configuration (virtio 1.2, 5.2.4: writeback)."""
    told = _read(file)
    if told != "write through" and switch:
        try:
            file.write_text("write through")
        except OSError as error:
            why = f"its hypervisor does not let it be switched off ({error.strerror})"
            return WriteCache(State.ON, f"{ON.text}: {why}")
        told = _read(file)
    return OFF if told == "write through" else ON


def _believed(file: Path) -> WriteCache:
    """What the driver of another kind of disk told the kernel; nothing can be switched there."""
    told = _read(file)
    if told == "write through":
        return WriteCache(State.NONE, "by its driver it has no volatile write cache")
    if told == "write back":
        return WriteCache(State.ON, f"{ON.text} by its driver, which has no way to switch it off")
    return worst([])


def _controllers(folder: Path) -> list[str]:
    """Names of the NVMe controllers that serve a namespace: one, or with native multipath any number."""
    if not folder.name.startswith("nvme"):
        return []
    device = (folder / "device").resolve()
    if (device / "transport").exists():
        return [device.name]
    return [each for each in _names(device) if each.removeprefix("nvme").isdecimal()]


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 - names, not paths
    except OSError:
        return []


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _flush(device: Path) -> None:
    """Also once the cache is off: what it held then is not said to be written by that."""
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
