"""Work that goes on while something dies: volumes that come and go, and one that is written and read."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from agent.model import Volume
from agent.nvmf import initiator
from agent.store.kubernetes.store import KubernetesStore

from .claims import CLAIMS, Claims
from .cluster import MIB, NODES
from .gated import GatedCluster

WIDTH = 4
KEPT_OF = 3
"""Every third volume is kept."""

SLOWEST_S = 5.0
"""What an operation on a volume in use may take on a busy machine; usual is a millisecond."""

Live = Callable[[str, str, bool], Awaitable[str]]


class Load:
    """Lives of volumes, WIDTH at a time, from `begin` to `end`. `live` takes name, node, and whether it is kept."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._numbers = itertools.count()
        self._ending = False
        self._workers: list[asyncio.Task[None]] = []
        self.kept: set[str] = set()
        """What has to be there in the end, by the names that Volumes have."""
        self.lives = 0

    def begin(self) -> None:
        self._workers = [asyncio.create_task(self._work()) for _ in range(WIDTH)]

    async def more(self, lives: int) -> None:
        """Returns when so many more have ended; raises what one of them ended in."""
        wanted = self.lives + lives
        while self.lives < wanted:
            for worker in self._workers:
                if worker.done():
                    worker.result()
            await asyncio.sleep(0.02)

    async def end(self) -> None:
        """Lets those that have begun come to their end."""
        self._ending = True
        await asyncio.gather(*self._workers)

    async def cancel(self) -> None:
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    async def _work(self) -> None:
        while not self._ending:
            number = next(self._numbers)
            keep = number % KEPT_OF == 0
            volume = await self._live(f"load-{number}", NODES[number % 2], keep)
            if keep:
                self.kept.add(volume)
            self.lives += 1


def of_calls(cluster: GatedCluster) -> Live:
    """A life by CSI calls, as sidecars make them."""

    async def live(name: str, node: str, keep: bool) -> str:
        volume = await cluster.ask(lambda csi: csi.create_volume(name, 16 * MIB))
        await cluster.ask(lambda csi: csi.publish(volume, node, block=True))
        await cluster.ask(lambda csi: csi.unpublish(volume, node))
        if not keep:
            await cluster.ask(lambda csi: csi.delete_volume(volume))
        return volume

    return live


def of_claims(claims: Claims) -> Live:
    """A life by the Kubernetes API."""

    async def live(name: str, node: str, keep: bool) -> str:
        await claims.claim(name, "16Mi", node)
        volume = await claims.bound(name)
        await claims.attach(volume, node)
        await claims.detach(volume, node)
        if not keep:
            await claims.delete(f"{CLAIMS}/{name}")
            await claims.gone(f"{CLAIMS}/{name}")
        return str(volume["spec"]["csi"]["volumeHandle"])

    return live


async def settled(cluster: GatedCluster, store: KubernetesStore, kept: set[str]) -> None:
    """Waits until store and targets have these volumes, each once; fails telling what is lost, left or doubled."""
    deadline = time.monotonic() + 60.0
    while True:
        records = await store.list(Volume)
        lvols, exports = await cluster.lvols(), await cluster.exports()
        held = sorted(name for names in lvols.values() for name in names)
        opened = sorted(nqn.rpartition(":")[2] for nqns in exports.values() for nqn in nqns)
        stored = sorted(each.meta.name for each in records)
        if stored == held == opened == sorted(kept):
            assert len({each.spec.csi_name for each in records}) == len(kept)
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"wanted {sorted(kept)}, stored {stored}, lvols {lvols}, exports {exports}")
        await asyncio.sleep(0.2)


@asynccontextmanager
async def in_use(host: initiator.Controller) -> AsyncIterator[None]:
    """The volume is written and read all the while; fails when an operation does, or takes long."""
    slowest_s, count = 0.0, 0

    async def use() -> None:
        nonlocal slowest_s, count
        while True:
            data, offset = count.to_bytes(8, "little") * 512, count % 1000 * 4096
            began = time.monotonic()
            await host.write(1, offset, data)
            assert await host.read(1, offset, 4096) == data
            slowest_s, count = max(slowest_s, time.monotonic() - began), count + 1
            await asyncio.sleep(0.01)

    task = asyncio.create_task(use())
    try:
        yield
        assert not task.done(), f"the volume in use failed: {task}"
        assert count
        assert slowest_s < SLOWEST_S
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
