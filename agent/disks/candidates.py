"""The block devices that a running agent follows: those that can ever be disks.

Volumes come and go as NVMe/TCP namespaces, ublk and loop devices; following them would cost work at each publication.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from agent.disks import transport as transports
from agent.disks.source import Event, Look, Source, Usage
from agent.disks.transport import NETWORK, Transport

_NEVER = NETWORK | {
    *(Transport.LOOP, Transport.UBLK, Transport.ZVOL, Transport.BCACHE, Transport.MEMORY),
    *(Transport.OPTICAL, Transport.FLOPPY),
}
_LOOP = re.compile(r"class/block/(loop\d+)/(serial|device/model)")


class Candidates:
    """A `Source` that leaves out what is never a disk of this machine.

    With `loop_devices`, loop devices on regular files are disks whose serial number is the path of the file.
    """

    def __init__(self, source: Source, *, loop_devices: bool = False) -> None:
        self._source = source
        self._never = _NEVER - {Transport.LOOP} if loop_devices else _NEVER
        self._known = frozenset[str]()

    def names(self) -> Sequence[str]:
        names = [name for name in self._source.names() if self._may_be_disk(name)]
        self._known = self._known.union(names)
        return names

    def sys_path(self, name: str) -> str:
        return self._source.sys_path(name)

    def properties(self, name: str) -> Mapping[str, str]:
        return self._source.properties(name)

    def read(self, path: str) -> str | None:
        found = self._source.read(path)
        loop = _LOOP.fullmatch(path) if found is None and Transport.LOOP not in self._never else None
        if loop is None:
            return found
        file = self._source.read(f"class/block/{loop[1]}/loop/backing_file") or ""
        if not file or file.startswith("/dev/"):
            return None
        return file if loop[2] == "serial" else "loop device"

    def entries(self, path: str) -> Sequence[str]:
        return self._source.entries(path)

    def usage(self) -> Usage:
        return self._source.usage()

    async def look(self, name: str, node: str) -> Look:
        return await self._source.look(name, node)

    def subscribe(self, on_event: Callable[[Event], None]) -> Callable[[], None]:
        def filtered(event: Event) -> None:
            if not event.disk or event.disk in self._known or self._may_be_disk(event.disk):
                self._known |= {event.disk}
                on_event(event)

        return self._source.subscribe(filtered)

    def _may_be_disk(self, name: str) -> bool:
        path = self._source.sys_path(name)
        return bool(path) and transports.transport(self._source, name, path) not in self._never
