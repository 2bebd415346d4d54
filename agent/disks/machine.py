"""The block devices of this machine, by udev and sysfs: the only module that uses pyudev."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import stat
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyudev

from agent.disks.source import PROPERTIES, Event, Look, Number, Usage
from agent.errors import CommandFailed, DeadlineExceeded, FailedPrecondition, NotFound, Unavailable
from agent.host import blkid, mount, udev
from agent.host import device as devices

log = logging.getLogger(__name__)

SYSFS = Path("/sys")
HOST_MOUNTINFO = Path("/proc/1/mountinfo")
SWAPS = Path("/proc/swaps")
EVENT_BUFFER_BYTES = 16 << 20
"""Thousands of disks may appear at once (a shelf is switched on); more than fits is noticed and looked for."""

_FILE_BYTES_MAX = 4096


class Machine:
    """Implements `Source`. Reading may be done from any thread, one call at a time is let into libudev.

    Raises FailedPrecondition when libudev is not installed.
    """

    def __init__(self, sysfs: Path = SYSFS, volumes: Callable[[], Mapping[str, str]] = dict) -> None:
        """`volumes` tells which volumes the agent here has devices of, by their kernel names."""
        self._sysfs = sysfs
        self._volumes = volumes
        try:
            self._udev = pyudev.Context()
        except ImportError as error:  # how pyudev says that it found no C library
            raise FailedPrecondition("libudev is not on this machine: install it (Debian package libudev1)") from error
        self._lock = threading.Lock()

    def names(self) -> Sequence[str]:
        return self.entries("block")

    def sys_path(self, name: str) -> str:
        place = self._sysfs / "class/block" / name
        if not name or not place.exists():
            return ""
        return os.path.relpath(os.path.realpath(place), self._sysfs)

    def properties(self, name: str) -> Mapping[str, str]:
        path = self.sys_path(name)
        if not path:
            return {}
        with self._lock:
            try:
                device = pyudev.Devices.from_sys_path(self._udev, str(self._sysfs / path))
            except pyudev.DeviceNotFoundError:
                return {}
            return readable(device.properties)

    def read(self, path: str) -> str | None:
        try:
            with (self._sysfs / path).open("rb", buffering=0) as file:
                return file.read(_FILE_BYTES_MAX).decode(errors="backslashreplace").strip()
        except OSError:
            return None

    def entries(self, path: str) -> Sequence[str]:
        try:
            return sorted(os.listdir(self._sysfs / path))  # noqa: PTH208 - names, not paths
        except OSError:
            return ()

    def usage(self) -> Usage:
        unseen = list[str]()
        return Usage(_mounts(unseen), _swaps(), self._loops(), tuple(unseen), self._volumes())

    async def look(self, name: str, node: str) -> Look:
        device = Path(node)
        try:
            found = devices.number(device)
        except (NotFound, OSError):
            return Look(problem=f"there is no device node {node}")
        if self.read(f"class/block/{name}/dev") != "{}:{}".format(*found):
            return Look(problem=f"{node} is the node of another device")
        if not os.access(device, os.R_OK):
            return Look(problem="no right to read it: run this as root", denied=True)
        try:
            return Look(await blkid.probe(device))
        except CommandFailed as error:
            return Look(problem=f"reading it failed: {_last_line(error.stderr)}")
        except DeadlineExceeded:
            return Look(problem=f"it did not answer within {blkid.PROBE_TIMEOUT_S:g} s")
        except (Unavailable, FailedPrecondition) as error:
            return Look(problem=str(error))

    def subscribe(self, on_event: Callable[[Event], None]) -> Callable[[], None]:
        def unless_udev(event: Event) -> None:
            if not udev.serves():
                on_event(event)

        # udev passes an event on when it knows the device. Without its daemon nobody does: then that of the kernel has
        # to do, which carries no properties. The daemon may end, or be back, at any time.
        ends = [_follow("udev", on_event), _follow("kernel", unless_udev)]

        def end() -> None:
            for each in ends:
                each()

        return end

    def _loops(self) -> Mapping[Number, tuple[str, ...]]:
        found = dict[Number, tuple[str, ...]]()
        for name in self.names():
            backing = self.read(f"class/block/{name}/loop/backing_file") if name.startswith("loop") else None
            number = _number(backing) if backing and backing.startswith("/dev/") else None
            if number:
                found[number] = (*found.get(number, ()), name)
        return found


def readable(properties: Mapping[str, str]) -> dict[str, str]:
    """Those of `PROPERTIES` that are there and can be decoded: pyudev raises for bytes that are not UTF-8."""
    found = {}
    for name in PROPERTIES:
        with contextlib.suppress(UnicodeDecodeError, KeyError):
            found[name] = properties[name]
    return found


def _follow(origin: str, on_event: Callable[[Event], None]) -> Callable[[], None]:
    """Follow the events of one origin ("udev", "kernel"); returns what ends it."""
    try:
        monitor = pyudev.Monitor.from_netlink(pyudev.Context(), origin)
        monitor.filter_by("block")
        with contextlib.suppress(OSError):  # needs CAP_NET_ADMIN; the default of the kernel does otherwise
            monitor.set_receive_buffer_size(EVENT_BUFFER_BYTES)
        monitor.start()
    except OSError as error:
        log.warning(
            "no events of block devices from %s (%s): changes are found by looking periodically", origin, error.strerror
        )
        return lambda: None
    return _Events(monitor, on_event).end


class _Events:
    """Passes on what a monitor receives, in the running event loop, until its end."""

    def __init__(self, monitor: pyudev.Monitor, on_event: Callable[[Event], None]) -> None:
        self._monitor: pyudev.Monitor | None = monitor
        self._on_event = on_event
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(monitor.fileno(), self._drain)

    def end(self) -> None:
        if self._monitor is not None:
            self._loop.remove_reader(self._monitor.fileno())
            self._monitor = None  # the last reference: libudev closes the socket

    def _drain(self) -> None:
        while self._monitor is not None:
            try:
                device = self._monitor.poll(0)
                if device is None:
                    return
                event = _event(device)
            except UnicodeDecodeError:
                event = Event("unreadable", "")
            except OSError as error:
                event = Event("lost", "")
                if error.errno != errno.ENOBUFS:
                    log.error("no more events of block devices (%s): looking periodically from now on", error)
                    self.end()
            self._on_event(event)


def _event(device: pyudev.Device) -> Event:
    # By the path alone: the parent of a partition that was removed cannot be asked any more.
    *_, parent, name = device.sys_path.rsplit("/", 2)
    return Event(device.action or "change", parent if device.device_type == "partition" else name)


def _mounts(unseen: list[str]) -> Mapping[Number, tuple[str, ...]]:
    """Mount points by device: those of our mount namespace, and those of the first process's, which may be others."""
    found = dict[Number, dict[str, None]]()
    tables = [mount.table()]
    try:
        tables.append(mount.table(HOST_MOUNTINFO))
    except OSError:
        unseen.append("mounts in other mount namespaces")
    for each in (entry for table in tables for entry in table if entry.device[0]):  # 0: no block device
        found.setdefault(each.device, {})[str(each.target)] = None
    return {number: tuple(targets) for number, targets in found.items()}


def _swaps() -> frozenset[Number]:
    try:
        lines = SWAPS.read_text(errors="surrogateescape").splitlines()[1:]
    except OSError:
        return frozenset()
    numbers = (_number(line.split()[0]) for line in lines if line.startswith("/"))
    return frozenset(number for number in numbers if number)


def _number(node: str) -> Number | None:
    try:
        found = os.stat(node)  # noqa: PTH116 - text of the kernel, which may be no valid path
    except (OSError, ValueError):
        return None
    return (os.major(found.st_rdev), os.minor(found.st_rdev)) if stat.S_ISBLK(found.st_mode) else None


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no reason given")
