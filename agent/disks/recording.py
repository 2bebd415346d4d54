"""What a `Source` answered, as a JSON document, and a `Source` that answers from one.

A recording holds what a discovery asked for: udev properties, files of sysfs, mounts by device, what lay on each disk.
It shows serial numbers and mount points, no data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from agent.disks.source import NOT_LOOKED, Event, Look, Number, Source, Usage
from agent.errors import InvalidArgument

VERSION = 1


@dataclass(slots=True)
class Recording:
    """The answers, by question. Device numbers are written `8:1`. What is not in it is absent."""

    version: int = VERSION
    sys_paths: dict[str, str] = field(default_factory=dict)
    """Place in the tree of devices by kernel name, also of partitions."""
    properties: dict[str, dict[str, str]] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    folders: dict[str, list[str]] = field(default_factory=dict)
    mounts: dict[str, list[str]] = field(default_factory=dict)
    swaps: list[str] = field(default_factory=list)
    loops: dict[str, list[str]] = field(default_factory=dict)
    unseen: list[str] = field(default_factory=list)
    volumes: dict[str, str] = field(default_factory=dict)
    looks: dict[str, Look] = field(default_factory=dict)


_DECODER = msgspec.json.Decoder(Recording)


def dump(recording: Recording) -> bytes:
    """The document."""
    return msgspec.json.format(msgspec.json.encode(recording, order="sorted"), indent=1) + b"\n"


def load(document: bytes) -> Recording:
    """The recording in a document. Raises InvalidArgument."""
    try:
        recording = _DECODER.decode(document)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidArgument("recording", f"is not one: {error}", "make one with `quarry disks record`") from error
    if recording.version != VERSION:
        raise InvalidArgument("recording", f"is of version {recording.version}", f"this program reads {VERSION}")
    return recording


class Recorder:
    """A `Source` that passes on another one's answers and writes them down."""

    def __init__(self, source: Source) -> None:
        self.recording = Recording()
        self._source = source

    def names(self) -> Sequence[str]:
        self.recording.folders["block"] = list(names := self._source.names())
        return names

    def sys_path(self, name: str) -> str:
        if path := self._source.sys_path(name):
            self.recording.sys_paths[name] = path
        return path

    def properties(self, name: str) -> Mapping[str, str]:
        if properties := self._source.properties(name):
            self.recording.properties[name] = dict(properties)
        return properties

    def read(self, path: str) -> str | None:
        if (text := self._source.read(path)) is not None:
            self.recording.files[path] = text
        return text

    def entries(self, path: str) -> Sequence[str]:
        if entries := self._source.entries(path):
            self.recording.folders[path] = list(entries)
        return entries

    def usage(self) -> Usage:
        usage, kept = self._source.usage(), self.recording
        kept.mounts = {_text(number): list(targets) for number, targets in usage.mounts.items()}
        kept.swaps = sorted(map(_text, usage.swaps))
        kept.loops = {_text(number): list(names) for number, names in usage.loops.items()}
        kept.unseen = list(usage.unseen)
        kept.volumes = dict(usage.volumes)
        return usage

    async def look(self, name: str, node: str) -> Look:
        look = await self._source.look(name, node)
        self.recording.looks[name] = look
        return look

    def subscribe(self, on_event: Callable[[Event], None]) -> Callable[[], None]:
        return self._source.subscribe(on_event)


class Recorded:
    """A `Source` that answers from a recording. It stands still: there are no events."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording

    def names(self) -> Sequence[str]:
        return self.entries("block")

    def sys_path(self, name: str) -> str:
        return self.recording.sys_paths.get(name, "")

    def properties(self, name: str) -> Mapping[str, str]:
        return self.recording.properties.get(name, {})

    def read(self, path: str) -> str | None:
        return self.recording.files.get(path)

    def entries(self, path: str) -> Sequence[str]:
        return self.recording.folders.get(path, ())

    def usage(self) -> Usage:
        kept = self.recording
        return Usage(
            {_number(number): tuple(targets) for number, targets in kept.mounts.items()},
            frozenset(map(_number, kept.swaps)),
            {_number(number): tuple(names) for number, names in kept.loops.items()},
            tuple(kept.unseen),
            kept.volumes,
        )

    async def look(self, name: str, node: str) -> Look:
        return self.recording.looks.get(name, NOT_LOOKED)

    def subscribe(self, on_event: Callable[[Event], None]) -> Callable[[], None]:
        return lambda: None


def _text(number: Number) -> str:
    return "{}:{}".format(*number)


def _number(text: str) -> Number:
    major, _, minor = text.partition(":")
    if not (major.isdecimal() and minor.isdecimal()):
        raise InvalidArgument("recording", f"{text!r} is no device number", "write MAJOR:MINOR")
    return int(major), int(minor)
