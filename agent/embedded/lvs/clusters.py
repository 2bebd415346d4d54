"""Which clusters a lvol owns."""

from __future__ import annotations

from collections.abc import Iterator

from agent.embedded.lvs.layout import CLUSTERS_PER_EXTENT_PAGE


class ClusterMap:
    """A set of cluster numbers, stored by groups of 512 so that a huge thin lvol costs what is written of it."""

    def __init__(self) -> None:
        self._groups: dict[int, int] = {}
        self.count = 0

    @classmethod
    def first(cls, count: int) -> ClusterMap:
        """The clusters 0 to `count` - 1."""
        new = cls()
        whole, rest = divmod(count, CLUSTERS_PER_EXTENT_PAGE)
        full = (1 << CLUSTERS_PER_EXTENT_PAGE) - 1
        new._groups = dict.fromkeys(range(whole), full)
        if rest:
            new._groups[whole] = (1 << rest) - 1
        new.count = count
        return new

    @classmethod
    def decode(cls, encoded: dict[str, str]) -> ClusterMap:
        """The inverse of `encode`. Raises ValueError."""
        new = cls()
        new._groups = {int(group): int(bits, 16) for group, bits in encoded.items()}
        new.count = sum(bits.bit_count() for bits in new._groups.values())
        return new

    def encode(self) -> dict[str, str]:
        """JSON-ready: group number to hexadecimal bits."""
        return {str(group): f"{bits:x}" for group, bits in self._groups.items()}

    @property
    def extent_pages(self) -> int:
        """Metadata pages that list these clusters."""
        return len(self._groups)

    def __contains__(self, cluster: int) -> bool:
        group, bit = divmod(cluster, CLUSTERS_PER_EXTENT_PAGE)
        return bool(self._groups.get(group, 0) >> bit & 1)

    def __iter__(self) -> Iterator[int]:
        for group, bits in sorted(self._groups.items()):
            base, rest = group * CLUSTERS_PER_EXTENT_PAGE, bits
            while rest:
                low = rest & -rest
                yield base + low.bit_length() - 1
                rest ^= low

    def add(self, cluster: int) -> None:
        group, bit = divmod(cluster, CLUSTERS_PER_EXTENT_PAGE)
        bits = self._groups.get(group, 0)
        if not bits >> bit & 1:
            self._groups[group] = bits | 1 << bit
            self.count += 1

    def discard(self, cluster: int) -> None:
        group, bit = divmod(cluster, CLUSTERS_PER_EXTENT_PAGE)
        bits = self._groups.get(group, 0)
        if bits >> bit & 1:
            self.count -= 1
            self._groups[group] = bits ^ 1 << bit
            if not self._groups[group]:
                del self._groups[group]

    def missing(self, first: int, last: int) -> list[int]:
        """Those of `first`..`last` (inclusive) that are not in the set."""
        return [cluster for cluster in range(first, last + 1) if cluster not in self]

    def union(self, other: ClusterMap, below: int) -> ClusterMap:
        """Both sets, of `other` only clusters below `below`."""
        new = self.below(below)
        for group, bits in other.below(below)._groups.items():
            new._groups[group] = new._groups.get(group, 0) | bits
        new.count = sum(bits.bit_count() for bits in new._groups.values())
        return new

    def minus(self, other: ClusterMap) -> ClusterMap:
        """Those that are not in `other`."""
        new = ClusterMap()
        new._groups = {
            group: kept for group, bits in self._groups.items() if (kept := bits & ~other._groups.get(group, 0))
        }
        new.count = sum(bits.bit_count() for bits in new._groups.values())
        return new

    def below(self, limit: int) -> ClusterMap:
        """The clusters below `limit`."""
        new = ClusterMap()
        last, rest = divmod(limit, CLUSTERS_PER_EXTENT_PAGE)
        for group, bits in self._groups.items():
            kept = bits if group < last else bits & ((1 << rest) - 1) if group == last else 0
            if kept:
                new._groups[group] = kept
        new.count = sum(bits.bit_count() for bits in new._groups.values())
        return new
