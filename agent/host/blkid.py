"""What is on a block device: nothing (proven), a known filesystem, or something else.

A wrong "nothing" destroys somebody's data, so blank takes two witnesses: libblkid's low-level probing finds no
signature *and* both ends and samples between read as zeroes.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from agent.errors import FailedPrecondition
from agent.host import content as contents
from agent.host import holders, process

PROBE_TIMEOUT_S = 30.0
SIZE_TIMEOUT_S = 5.0
UNLABEL_TIMEOUT_S = 300.0
"""A pool has 16 MiB of metadata and 64 MiB for each TiB of its disk."""
ZERO_BYTES = 4 << 30
"""What a device is asked to zero at a time: between two it is told how far it is."""
ZERO_TIMEOUT_S = 600.0
_NOTHING_FOUND = 2
_AMBIVALENT = 8


@dataclass(frozen=True, slots=True)
class Label:
    """An SPDK lvstore. `name` is "" for one that was not made to the end, or cannot be read."""

    name: str
    uuid: str = ""


@dataclass(frozen=True, slots=True)
class Content:
    """`description` is for a person. `never_mounted` is proof (False: not known) that nobody wrote files to it."""

    blank: bool
    description: str
    fs_type: str = ""
    uuid: str = ""
    recognized: bool = False
    """Some signature was found: a filesystem, a partition table, a volume manager, or several of them."""
    never_mounted: bool = False
    filesystem_bytes: int = 0
    """Size in the superblock (ext2-4, xfs, btrfs), else 0."""
    label: Label | None = None
    """Of an SPDK lvstore at its beginning. Signatures that libblkid finds beside it may be data of its volumes."""
    only_label: bool = False
    """There is a label, and libblkid knows nothing else on the device."""


async def probe(device: Path) -> Content:
    """Look at a device without changing it. CommandFailed when it cannot be read."""
    code, values = await _signatures(device)
    facts = await _look(device)
    content = _content(code, values, facts)
    if "label" not in facts:
        return content
    label = Label(str(facts["label"]), str(facts["label_uuid"]))
    what = f"the SPDK pool {label.name!r}" if label.name else "an SPDK pool that was not made to the end"
    if content.recognized:
        what += f", and {content.description}"
    return replace(
        content, blank=False, description=what, recognized=True, label=label, only_label=not content.recognized
    )


async def probe_for(device: Path, fs_type: str) -> Content:
    """As `probe`, but a valid superblock of `fs_type` settles it, whatever else there is.

    The superblock is where no user can write. Every other signature may be the data of a file: volume managers and
    RAIDs have theirs near the device's end, or further in, and libblkid believes them first.
    """
    code, values = await _signatures(device, "-n", fs_type)
    if code == 0 and values.get("TYPE") == fs_type:
        return _content(code, values, await _look(device))
    return await probe(device)


async def _signatures(device: Path, *options: str) -> tuple[int, dict[str, str]]:
    found = await process.run(
        ["blkid", "-p", *options, "-o", "export", "--", str(device)],
        timeout_s=PROBE_TIMEOUT_S,
        ok_codes=(0, _NOTHING_FOUND, _AMBIVALENT),
    )
    return found.code, _parse_export(found.stdout)


def _content(code: int, values: dict[str, str], facts: contents.Facts) -> Content:
    if code == _AMBIVALENT:
        return Content(False, "signatures of several kinds at once", recognized=True)
    fs_type = values.get("TYPE", "")
    if fs_type or "PTTYPE" in values:
        return Content(
            False,
            _describe(values),
            fs_type=fs_type if values.get("USAGE", "filesystem") == "filesystem" else "",
            uuid=values.get("UUID", "").lower(),
            recognized=True,
            never_mounted=facts.get("never_mounted") == 1,
            filesystem_bytes=int(facts.get("filesystem_size") or 0),
        )
    first_data = facts["first_data"]
    if first_data is not None:
        return Content(False, f"data of an unknown kind (first at byte {first_data})")
    return Content(True, "nothing")


async def filesystem_bytes(device: Path) -> int:
    """The size of the filesystem on a device, in bytes, by its superblock (ext2-4, xfs, btrfs); 0: of none of these."""
    done = await process.run(_script("size", device), timeout_s=SIZE_TIMEOUT_S)
    return int(done.stdout)


async def clear_ends(device: Path) -> None:
    """Zero the first and last MiB: only for remains that are known to be ours."""
    await process.run(_script("clear", device), timeout_s=PROBE_TIMEOUT_S)


async def is_held(device: Path) -> bool:
    """Whether a filesystem or a driver has the device, seen or not.

    A filesystem lives on without any mount when its last one was taken away while it cannot write back (its target is
    away), or when another mount namespace has it.
    """
    done = await process.run(_script("hold", device), timeout_s=PROBE_TIMEOUT_S, ok_codes=(0, contents.HELD))
    return done.code == contents.HELD


async def remove_pool(device: Path, label: Label) -> None:
    """Make a device blank that carries the pool `label` without any volume. FailedPrecondition when it does not.

    What is looked at is what is written to: both happen under one exclusive open.
    """
    codes = (0, contents.HELD, contents.OTHER)
    command = [*_script("unlabel", device), label.name, label.uuid]
    done = await process.run(command, timeout_s=UNLABEL_TIMEOUT_S, ok_codes=codes)
    if done.code == contents.HELD:
        told = await asyncio.to_thread(holders.describe, device)
        raise FailedPrecondition(told or f"{device} is in use: see `lsblk {device}`")
    if done.code == contents.OTHER:
        raise FailedPrecondition(f"{device} does not carry the pool {label.name!r} ({label.uuid}) any more")


async def zero(device: Path, start: int, end: int, tell: Callable[[int], Awaitable[None]]) -> bool:
    """Have the device itself make a range of bytes read as zeroes; False when it cannot.

    `tell` is called with the bytes that are done, now and then. Who calls it holds the device.
    """
    for at in range(start, end, ZERO_BYTES):
        await tell(at - start)
        command = [*_script("zero", device), str(at), str(min(end, at + ZERO_BYTES))]
        done = await process.run(command, timeout_s=ZERO_TIMEOUT_S, ok_codes=(0, contents.UNSUPPORTED))
        if done.code == contents.UNSUPPORTED:
            return False
    return True


async def _look(device: Path) -> contents.Facts:
    done = await process.run(_script("look", device), timeout_s=PROBE_TIMEOUT_S)
    facts: contents.Facts = json.loads(done.stdout)
    return facts


def _script(action: str, device: Path) -> list[str]:
    return [sys.executable, "-I", "-S", contents.__file__, action, str(device)]


def _parse_export(text: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name: value for name, _, value in pairs}


def _describe(values: dict[str, str]) -> str:
    if "TYPE" not in values:
        return f"a {values['PTTYPE']} partition table"
    label = f" labelled {values['LABEL']!r}" if values.get("LABEL") else ""
    kind = {"filesystem": "filesystem", "raid": "volume manager or RAID member"}.get(
        values.get("USAGE", ""), "signature"
    )
    return f"a {values['TYPE']} {kind}{label}"
