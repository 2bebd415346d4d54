"""What deleted lvols have left in free clusters: as the real target, this one records a deletion first, then zeroes.

Killed in between, the rest is never zeroed, and whoever gets the clusters next sees it. Here each lvol has a file of
its own, so the rest stays in the file of the deleted one, and is moved from there into the clusters given out next.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

from agent.embedded.lvs import datafile
from agent.embedded.lvs.clusters import ClusterMap

log = logging.getLogger(__name__)

DATA_SUFFIX = ".data"


class Leftovers:
    """Of one store. Files are in `directory`, named by the uuid of their lvol."""

    def __init__(self, directory: Path, cluster_bytes: int) -> None:
        self._directory = directory
        self._cluster_bytes = cluster_bytes
        self.zeroing: dict[str, ClusterMap] = {}
        """Freed, and being zeroed: not to be given out."""
        self._left: deque[tuple[str, int]] = deque()
        """Freed, and never zeroed: free, and given out first."""

    @property
    def zeroing_clusters(self) -> int:
        return sum(each.count for each in self.zeroing.values())

    def freed(self) -> dict[str, ClusterMap]:
        """All that is not zeroed."""
        found = dict(self.zeroing)
        for uuid, cluster in self._left:
            found.setdefault(uuid, ClusterMap()).add(cluster)
        return found

    def found(self, freed: dict[str, ClusterMap]) -> None:
        """What a life of the target that was killed has left."""
        for uuid, clusters in freed.items():
            if data := self._clusters_with_data(uuid, clusters):
                self._left.extend((uuid, cluster) for cluster in data)
                log.warning("%d free clusters hold what lvol %s had written", len(data), uuid)
            else:
                self._path(uuid).unlink(missing_ok=True)

    def _clusters_with_data(self, uuid: str, clusters: ClusterMap) -> list[int]:
        size, found = self._cluster_bytes, set[int]()
        with contextlib.suppress(FileNotFoundError), self._path(uuid).open("rb") as file:
            end = file.seek(0, 2)
            for start, stop in datafile.data_ranges(file.fileno(), end):
                found.update(range(start // size, -(-stop // size)))
        return [cluster for cluster in clusters if cluster in found]

    def hand_out(self, path: Path, clusters: Iterable[int], *, shown: bool = True) -> None:
        """These clusters of the lvol at `path` are new: they show what they held before, unless all is overwritten."""
        size = self._cluster_bytes
        for cluster in clusters if self._left else ():
            if not self._left:
                return
            uuid, old = self._left.popleft()
            with contextlib.suppress(FileNotFoundError):
                if shown:
                    datafile.move(self._path(uuid), path, old * size, cluster * size, size)
                else:
                    datafile.zero(self._path(uuid), old * size, size)
            if not self._left or self._left[0][0] != uuid:
                self._path(uuid).unlink(missing_ok=True)

    async def zero(self, uuid: str, is_over: Callable[[], bool]) -> None:
        """Zero what was freed of an lvol, a cluster at a time, and remove its file; until `is_over`."""
        path, size = self._path(uuid), self._cluster_bytes
        for cluster in self._clusters_with_data(uuid, self.zeroing[uuid]):
            if is_over():
                return
            await asyncio.to_thread(datafile.zero, path, cluster * size, size)
        if not is_over():
            with contextlib.suppress(OSError):  # what is left is collected at the next load
                await asyncio.to_thread(path.unlink)

    def forget(self, uuid: str) -> None:
        """It is zeroed."""
        self.zeroing.pop(uuid, None)

    def _path(self, uuid: str) -> Path:
        return self._directory / f"{uuid}{DATA_SUFFIX}"
