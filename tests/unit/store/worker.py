"""A second process for the tests: `worker.py DATABASE MODE ...` works on the store and reports on standard output."""

from __future__ import annotations

import asyncio
import os
import resource as limits
import signal
import sys
from dataclasses import replace
from pathlib import Path

from agent.errors import Conflict, Unavailable
from agent.model import Disk, Meta
from agent.store.interface import Store
from agent.store.local import open_local


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def bigger(disk: Disk) -> Disk:
    return replace(disk, status=replace(disk.status, size_bytes=disk.status.size_bytes + 1))


async def count(store: Store, name: str, times: int) -> None:
    """Adds one to a shared counter, again until nobody came between."""
    for _ in range(times):
        while True:
            disk = await store.get(Disk, "shared")
            if disk is None:
                raise SystemExit("the counter is gone")
            try:
                await store.update(bigger(disk))
                break
            except Conflict:
                continue
        await store.create(Disk(Meta(f"{name}-{times}")))
        await store.delete(Disk, f"{name}-{times}")


async def hammer(path: Path, name: str) -> None:
    store = await open_local(path)
    await asyncio.gather(*(count(store, f"{name}-{task}", 25) for task in range(8)))
    await store.close()
    say("done")


async def endless(path: Path, name: str) -> None:
    """Writes until killed; says every write that was acknowledged."""
    store = await open_local(path)

    async def one(task: int) -> None:
        disk = await store.create(Disk(Meta(f"{name}-{task}")))
        while True:
            say(f"{disk.meta.name} {disk.meta.version} {disk.status.size_bytes}")
            disk = await store.update(bigger(disk))

    await asyncio.gather(*(one(task) for task in range(16)))


async def full(path: Path) -> None:
    """Writes until the file may not grow, then again after there is room."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store = await open_local(path)
    limits.setrlimit(limits.RLIMIT_FSIZE, (300_000, limits.RLIM_INFINITY))
    written = 0
    try:
        while written < 10_000:
            await store.create(Disk(Meta(f"d{written}")))
            written += 1
    except Unavailable as error:
        say(f"refused {error}")
    readable = len(await store.list(Disk))
    limits.setrlimit(limits.RLIMIT_FSIZE, (limits.RLIM_INFINITY, limits.RLIM_INFINITY))
    await store.create(Disk(Meta("after")))
    say(f"counts {written} {readable} {len(await store.list(Disk))}")
    await store.close()


async def once(path: Path, name: str) -> None:
    """Opens, writes one resource and closes, as a command of the CLI does."""
    store = await open_local(path)
    await store.create(Disk(Meta(name)))
    await store.close()


MODES = {"once": once, "hammer": hammer, "endless": endless, "full": full}

if __name__ == "__main__":
    asyncio.run(MODES[sys.argv[2]](Path(sys.argv[1]), *sys.argv[3:]))
