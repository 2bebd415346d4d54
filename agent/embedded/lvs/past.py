"""What is written to data files past the target, through loop devices: found out by looking, as nobody tells."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable
from pathlib import Path

from agent.embedded.lvs import datafile
from agent.embedded.lvs.extents import changed_ranges
from agent.embedded.lvs.lvol import LvolBdev
from agent.embedded.lvs.store import Lvstore

log = logging.getLogger(__name__)

_BACKING_FILES = "loop*/loop/backing_file"


class LoopWrites:
    """Counts the clusters of lvols whose data files loop devices are on, now or at the last look."""

    def __init__(self, block_devices: Path = Path("/sys/block")) -> None:
        self._block_devices = block_devices
        self._seen: set[Path] = set()

    async def count(self, stores: Iterable[Lvstore]) -> None:
        """Bring what the lvols own up to date; one that an operation is changing is looked at the next time."""
        attached = await asyncio.to_thread(self._attached)
        looked_at, self._seen = attached | self._seen, attached
        if not looked_at:
            return
        for store in stores:
            for bdev in [each for each in store.lvols.values() if each.path in looked_at]:
                if bdev.record.thin and not bdev.record.read_only and not bdev.operation.locked():
                    async with bdev.operation, bdev.gate.closed():
                        await recount(store, bdev)

    async def settle(self, store: Lvstore, bdev: LvolBdev) -> None:
        """`count` of one lvol, whose operations and writes the caller keeps away."""
        if bdev.record.thin and bdev.path in self._seen | await asyncio.to_thread(self._attached):
            await recount(store, bdev)

    def _attached(self) -> set[Path]:
        found = set()
        for file in self._block_devices.glob(_BACKING_FILES):
            try:
                found.add(Path(file.read_text().rstrip("\n")))
            except (OSError, UnicodeDecodeError):
                continue  # it was detached meanwhile, or is none of ours
        return found


async def recount(store: Lvstore, bdev: LvolBdev) -> None:
    """Own what the data file holds. The caller keeps operations and writes away."""
    parent = store.lvols.get(bdev.record.parent) if bdev.record.parent is not None else None
    try:
        held = await asyncio.to_thread(_held, store, bdev, parent)
    except OSError as error:
        log.warning("what was written to %s could not be counted: %s", bdev.path, error)
        return
    if store.closed or bdev.removed:
        return
    # What was discarded goes back, as in `LvolBdev.do_unmap`: not over a snapshot.
    gone = [] if parent else [cluster for cluster in bdev.record.own if cluster not in held]
    store.own(bdev.record, [cluster for cluster in sorted(held) if cluster not in bdev.record.own], gone)


def _held(store: Lvstore, bdev: LvolBdev, parent: LvolBdev | None) -> Collection[int]:
    """Clusters with data of the lvol's own. Blocks: run it in a thread. Raises OSError."""
    size, end = store.cluster_bytes, bdev.record.clusters * store.cluster_bytes
    found = set[int]()
    with store.files.open(bdev.path) as fd:
        if parent is None:
            ranges = list(datafile.data_ranges(fd, end))
        else:
            with store.files.open(parent.path) as below:
                ranges = list(changed_ranges(fd, below, end))
    for start, stop in ranges:
        found.update(range(start // size, (stop - 1) // size + 1))
    return found
