"""The kernel's NVMe/TCP host: connecting and disconnecting by its own files, and what sysfs says about it.

Not by nvme-cli: before anything else it opens the block device of every namespace of the machine, and opening one
waits while another process reads its partition table; I/O to a target that lets us in no more waits for ever. So one
such volume would stop all connecting and disconnecting, that of the volume itself included (docs/decisions/0016).

sysfs, with native multipath (the default): /sys/class/nvme-subsystem/nvme-subsysN has `subsysnqn`, a link to each
controller nvmeX, and a directory nvmeNnM for each namespace; without, namespaces are in /sys/class/nvme/nvmeX.
The kernel sends no event when a connection is lost, so states are read when needed.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from agent.errors import CommandFailed, DeadlineExceeded, FailedPrecondition, Unavailable
from agent.host import process
from agent.model import ConnectOptions

DEFAULTS = ConnectOptions()
CONNECT_TIMEOUT_S = 30.0
DEVICE_TIMEOUT_S = 20.0
_POLL_S = 0.02
_CONTROLLER = re.compile(r"nvme\d+")
_SUBSYSTEM = re.compile(r"nvme-subsys\d+")
_NAMESPACE = re.compile(r"nvme\d+n\d+")
_HOST_NQN_UUID = re.compile(r"nqn\.2014-08\.org\.nvmexpress:uuid:([0-9a-fA-F-]{36})")


_MULTIPATH = Path("/sys/module/nvme_core/parameters/multipath")


def holds_io_back() -> bool:
    """Whether the kernel's host keeps I/O to a namespace that is inaccessible (ANA) until it is accessible again.

    Native multipath does, without it such I/O fails. No NVMe host in this kernel: there is none that could do harm.
    """
    try:
        return _MULTIPATH.read_text().strip() != "N"
    except OSError:
        return True


@dataclass(frozen=True, slots=True)
class Controller:
    """One connection. `state` is the kernel's word: new, live, resetting, connecting, deleting, dead."""

    name: str
    state: str
    transport: str
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Namespace:
    name: str
    uuid: str
    size_bytes: int


class NvmeHost:
    """`sysfs` and `dev` are replaced in tests by recorded trees."""

    def __init__(self, sysfs: Path = Path("/sys"), dev: Path = Path("/dev")) -> None:
        self._sysfs = sysfs
        self._dev = dev

    def controllers(self, nqn: str) -> list[Controller]:
        """The connections to a subsystem, dying ones included."""
        found = []
        for directory in _directories(self._sysfs / "class/nvme", _CONTROLLER):
            if _read(directory / "subsysnqn") == nqn:
                address = dict(part.partition("=")[::2] for part in _read(directory / "address").split(","))
                found.append(
                    Controller(
                        name=directory.name,
                        state=_read(directory / "state"),
                        transport=_read(directory / "transport"),
                        address=address.get("traddr", ""),
                        port=int(address.get("trsvcid") or 0),
                    )
                )
        return found

    def connected(self, host_nqn: str) -> list[str]:
        """NQNs of the subsystems that this machine is connected to as `host_nqn`.

        Connections made as another host belong to another agent. A kernel that does not tell counts as ours.
        """
        directories = _directories(self._sysfs / "class/nvme", _CONTROLLER)
        ours = [directory for directory in directories if _read(directory / "hostnqn") in ("", host_nqn)]
        return sorted({_read(directory / "subsysnqn") for directory in ours} - {""})

    def namespaces(self, nqn: str) -> list[Namespace]:
        """The namespaces of a subsystem that have a block device."""
        parents = [
            directory
            for directory in _directories(self._sysfs / "class/nvme-subsystem", _SUBSYSTEM)
            if _read(directory / "subsysnqn") == nqn
        ]
        parents += [self._sysfs / "class/nvme" / controller.name for controller in self.controllers(nqn)]
        found = {}
        for parent in parents:
            for directory in _directories(parent, _NAMESPACE):
                sectors = _read(directory / "size")
                size = int(sectors) * 512 if sectors.isdecimal() else 0
                found[directory.name] = Namespace(directory.name, _read(directory / "uuid").lower(), size)
        return [found[name] for name in sorted(found)]

    def find(self, nqn: str, namespace_uuid: str) -> Path | None:
        """The block device of a namespace, or None. The UUID decides, names are reused."""
        for namespace in self.namespaces(nqn):
            if namespace.uuid == namespace_uuid.lower() and (self._dev / namespace.name).exists():
                return self._dev / namespace.name
        return None

    def subsystem_of(self, namespace: str) -> str:
        """The NQN of the subsystem that a block device ("nvme0n1") belongs to; "" when there is none."""
        for kind, name in (("nvme-subsystem", _SUBSYSTEM), ("nvme", _CONTROLLER)):
            for directory in _directories(self._sysfs / "class" / kind, name):
                if (directory / namespace).exists():
                    return _read(directory / "subsysnqn")
        return ""

    def first(self, nqn: str) -> Path | None:
        """The block device of a subsystem that has one namespace, whatever its UUID; None when there is none."""
        found = [self._dev / each.name for each in self.namespaces(nqn)]
        return next((each for each in found if each.exists()), None)

    def size_bytes(self, nqn: str, namespace_uuid: str) -> int:
        """Size that the kernel knows, 0 when it does not know the namespace."""
        return next((found.size_bytes for found in self.namespaces(nqn) if found.uuid == namespace_uuid.lower()), 0)

    async def connect(
        self, nqn: str, address: str, port: int, host_nqn: str, options: ConnectOptions = DEFAULTS
    ) -> None:
        """Connect to a subsystem; connected there already, also if just reconnecting: nothing happens.

        By default it reconnects every second for ever, so a target may restart under a mounted filesystem.
        FailedPrecondition when this kernel has no NVMe/TCP; Unavailable when the target does not let us in now.
        """
        if self._connected(nqn, address, port):
            return
        if not (self._dev / "nvme-fabrics").exists():
            raise FailedPrecondition("this kernel has no NVMe/TCP host: `modprobe nvme-tcp`, or use the loop frontend")
        asked: dict[str, str | int] = {"transport": "tcp", "traddr": address, "trsvcid": port, "nqn": nqn}
        asked |= {"hostnqn": host_nqn, "hostid": host_id(host_nqn), **_options(options)}
        try:
            await _write(self._dev / "nvme-fabrics", ",".join(f"{key}={value}" for key, value in asked.items()))
        except CommandFailed as error:
            if self._connected(nqn, address, port):  # by somebody else in the meantime
                return
            raise Unavailable(f"{address}:{port} did not accept the connection: {error.stderr.strip()}") from error

    async def wait_for_device(self, nqn: str, namespace_uuid: str, timeout_s: float = DEVICE_TIMEOUT_S) -> Path:
        """The block device once it is there. Unavailable after `timeout_s`, with the state of each connection."""
        deadline = time.monotonic() + timeout_s
        while (device := self.find(nqn, namespace_uuid)) is None:
            if time.monotonic() > deadline:
                states = ", ".join(f"{found.name} {found.state}" for found in self.controllers(nqn)) or "not connected"
                others = ", ".join(found.uuid for found in self.namespaces(nqn)) or "none"
                raise Unavailable(
                    f"namespace {namespace_uuid} of {nqn} did not appear in {timeout_s:g} s "
                    f"(connections: {states}; namespaces: {others})"
                )
            await asyncio.sleep(_POLL_S)
        return device

    async def disconnect(self, nqn: str) -> None:
        """End all connections to a subsystem and wait until they are gone; none: nothing happens."""
        for controller in self.controllers(nqn):
            await self.delete(controller.name)
        deadline = time.monotonic() + DEVICE_TIMEOUT_S
        while self.controllers(nqn):
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"the kernel is still closing its connections to {nqn}")
            await asyncio.sleep(_POLL_S)

    async def disconnect_others(self, nqn: str, address: str, port: int) -> None:
        """End connections of a subsystem to any other place than this one, once this one is live."""
        found = self.controllers(nqn)
        if not any(_is_at(controller, address, port) and controller.state == "live" for controller in found):
            return
        for controller in found:
            if not _is_at(controller, address, port):
                await self.delete(controller.name)

    async def rescan(self, nqn: str) -> None:
        """Ask the kernel to look at sizes and namespaces again; usually the target has told it already."""
        for controller in self.controllers(nqn):
            if controller.state == "live":
                await _write(self._sysfs / "class/nvme" / controller.name / "rescan_controller", "1")

    async def delete(self, controller: str) -> None:
        """End one connection: what waits for it fails, whoever has it open. One that has gone meanwhile is gone."""
        folder = self._sysfs / "class/nvme" / controller
        try:
            await _write(folder / "delete_controller", "1")
        except CommandFailed:
            if folder.exists():
                raise

    def _connected(self, nqn: str, address: str, port: int) -> bool:
        return any(
            _is_at(found, address, port) and found.state not in ("deleting", "deleting (no IO)", "dead")
            for found in self.controllers(nqn)
        )


def host_id(host_nqn: str) -> str:
    """The host identifier that goes with a host NQN: the UUID in it, else one derived from it.

    Linux refuses one NQN with two identifiers, so it has to be the same one every time.
    """
    match = _HOST_NQN_UUID.fullmatch(host_nqn)
    return match[1].lower() if match else str(uuid.uuid5(uuid.NAMESPACE_URL, host_nqn))


async def _write(file: Path, text: str) -> None:
    """Write to a file of the kernel in one call, by a child that can be given up: it may wait for a target."""
    await process.run(["tee", str(file)], input=text.encode(), timeout_s=CONNECT_TIMEOUT_S)


def _options(options: ConnectOptions) -> dict[str, int]:
    """As the kernel names them (drivers/nvme/host/fabrics.c, opt_tokens). Seconds."""
    found = {"ctrl_loss_tmo": options.loss_timeout_s, "reconnect_delay": options.reconnect_delay_s}
    found |= {"keep_alive_tmo": options.keep_alive_s}
    return found | ({"nr_io_queues": options.io_queues} if options.io_queues else {})


def _is_at(controller: Controller, address: str, port: int) -> bool:
    return (controller.address, controller.port) == (address, port)


def _directories(parent: Path, name: re.Pattern[str]) -> list[Path]:
    try:
        return sorted(entry for entry in parent.iterdir() if name.fullmatch(entry.name))
    except OSError:  # no NVMe in this kernel, or it went while we looked
        return []


def _read(file: Path) -> str:
    """An attribute, "" when it went away while we looked: controllers do."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""
