"""A machine made of recorded facts that disks can be plugged into and pulled from; counts what is asked of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from agent.disks.recording import Recorded, Recording
from agent.disks.source import Event, Look
from agent.host.blkid import Content

BLANK = Look(Content(True, "nothing"))
MIB, GIB = 1 << 20, 1 << 30


def carries(description: str) -> Look:
    return Look(Content(False, description, recognized=True))


@dataclass
class Disk:
    """What a disk tells; `files` are below its folder in sysfs and win over the usual ones."""

    name: str
    sys_path: str
    sectors: int | str = 4 * GIB // 512
    rotational: int = 0
    properties: dict[str, str] = field(default_factory=dict)
    files: dict[str, str | None] = field(default_factory=dict)
    look: Look = BLANK
    partitions: dict[str, str] = field(default_factory=dict)
    """Filesystem by name."""
    folders: dict[str, list[str]] = field(default_factory=dict)
    holders: list[str] = field(default_factory=list)
    slaves: list[str] = field(default_factory=list)


class FakeMachine(Recorded):
    def __init__(self) -> None:
        super().__init__(Recording())
        self.recording.folders["block"] = []
        self.asked = Counter[str]()
        self.looked = Counter[str]()
        self.stuck = dict[str, asyncio.Event]()
        self.on_look: Callable[[str], None] = lambda name: None
        self.listeners = list[Callable[[Event], None]]()
        self._sequence = 0

    def plug(self, disk: Disk) -> None:
        """Put a disk in. It gets the next DISKSEQ and device number."""
        recording, name, self._sequence = self.recording, disk.name, self._sequence + 1
        recording.folders["block"] = sorted({*recording.folders["block"], name})
        recording.sys_paths[name] = disk.sys_path
        recording.properties[name] = {"DEVNAME": f"/dev/{name}", "DEVTYPE": "disk", **disk.properties}
        recording.looks[name] = disk.look
        here = f"class/block/{name}"
        files: dict[str, str | None] = {
            "dev": f"8:{self._sequence * 16}",
            "diskseq": str(self._sequence),
            "size": str(disk.sectors),
            "ro": "0",
            "removable": "0",
            "hidden": "0",
            "queue/rotational": str(disk.rotational),
            "queue/logical_block_size": "512",
            "queue/physical_block_size": "512",
            "queue/zoned": "none",
        }
        for path, text in (files | disk.files).items():
            if text is not None:
                recording.files[f"{here}/{path}"] = text
        recording.folders[here] = sorted(["queue", "holders", "slaves", *disk.partitions])
        for path, entries in disk.folders.items():
            self.set_folder(f"{here}/{path}", entries)
        self.set_folder(f"{here}/holders", disk.holders)
        self.set_folder(f"{here}/slaves", disk.slaves)
        for number, (partition, fs_type) in enumerate(disk.partitions.items(), 1):
            recording.sys_paths[partition] = f"{disk.sys_path}/{partition}"
            recording.properties[partition] = {"ID_FS_TYPE": fs_type} if fs_type else {}
            recording.files[f"{here}/{partition}/partition"] = str(number)
            recording.files[f"class/block/{partition}/partition"] = str(number)
            recording.files[f"class/block/{partition}/dev"] = f"8:{self._sequence * 16 + number}"

    def pull(self, name: str) -> None:
        self.recording.folders["block"] = [each for each in self.recording.folders["block"] if each != name]
        self.recording.sys_paths.pop(name, None)
        for facts in (self.recording.files, self.recording.folders):
            for path in [path for path in facts if path.startswith(f"class/block/{name}/")]:
                del facts[path]

    def set_folder(self, path: str, names: Sequence[str]) -> None:
        self.recording.folders[path] = list(names)

    def emit(self, action: str, disk: str) -> None:
        for listener in list(self.listeners):
            listener(Event(action, disk))

    @property
    def questions(self) -> int:
        return self.asked.total()

    # --- Source ---

    def sys_path(self, name: str) -> str:
        self.asked[name] += 1
        return super().sys_path(name)

    def properties(self, name: str) -> Mapping[str, str]:
        self.asked[name] += 1
        return super().properties(name)

    def read(self, path: str) -> str | None:
        self.asked[path.split("/")[2]] += 1
        return super().read(path)

    def entries(self, path: str) -> Sequence[str]:
        self.asked[path] += 1
        return super().entries(path)

    async def look(self, name: str, node: str) -> Look:
        self.looked[name] += 1
        self.on_look(name)
        if name in self.stuck:
            await self.stuck[name].wait()
        return await super().look(name, node)

    def subscribe(self, on_event: Callable[[Event], None]) -> Callable[[], None]:
        self.listeners.append(on_event)
        return lambda: self.listeners.remove(on_event)
