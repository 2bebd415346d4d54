"""`quarry volumes adopt` and `discard`: what becomes of data without a record is written on the Disk that has them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import click

from agent.cli.asking import Where
from agent.cli.disks.claims import timeout_option
from agent.cli.resources import where_options_and_logs
from agent.errors import DeadlineExceeded, InvalidArgument, NotFound, Unavailable

POLL_S = 0.2
DISKS = "disks.quarry.storage"

Wish = Literal["adopt", "discard"]


@dataclass(frozen=True, slots=True)
class Found:
    """Data without a record: of which id, how large, on which disk, and what was wished of that disk so far."""

    name: str
    size_bytes: int
    disk: str
    wishes: Sequence[str]


class Disks(Protocol):
    """Where wishes are written to: the database of this machine's agent, or the cluster."""

    def unrecorded(self, wish: Wish) -> list[Found]: ...

    def wish(self, disk: str, wish: Wish, names: Sequence[str]) -> None:
        """Add `names` to what is wished of the disk."""
        ...


_NAMES = click.argument("names", metavar="NAME...", nargs=-1, required=True)


@click.command(short_help="Make records of data that have none.")
@_NAMES
@timeout_option
@where_options_and_logs
def adopt(names: Sequence[str], timeout_s: float, where: Where) -> None:
    """Make a record of each volume or snapshot NAME, whose data are on a disk without one (condition Unrecorded).

    Size and data are known from the disk; name and parameters come from the CreateVolume that is repeated.
    """
    _carry_out(where, "adopt", names, timeout_s)


@click.command(short_help="Destroy data that have no record.")
@_NAMES
@click.option("--yes", is_flag=True, help="Do not ask.")
@timeout_option
@where_options_and_logs
def discard(names: Sequence[str], yes: bool, timeout_s: float, where: Where) -> None:
    """DESTROY the data of each volume or snapshot NAME, which are on a disk without a record (condition Unrecorded)."""
    if not yes and not sys.stdin.isatty():
        raise InvalidArgument("--yes", "is not given, and there is nobody to ask", "give it to destroy the data")
    _carry_out(where, "discard", names, timeout_s, ask=not yes)


def _carry_out(where: Where, wish: Wish, names: Sequence[str], timeout_s: float, *, ask: bool = False) -> None:
    disks = _disks(where)
    found = {each.name: each for each in disks.unrecorded(wish)}
    for name in names:
        if name not in found:
            raise NotFound("data without a record", name)
    wanted = [found[name] for name in dict.fromkeys(names)]
    if ask:
        from agent.cli.tables import size

        for each in wanted:
            click.echo(f"{each.name}  {size(each.size_bytes)}  disk {each.disk}")
        click.confirm("These data are destroyed. Go on?", abort=True)
    for disk in dict.fromkeys(each.disk for each in wanted):
        disks.wish(disk, wish, [each.name for each in wanted if each.disk == disk])
    _follow(disks, wish, {each.name for each in wanted}, timeout_s)


def _follow(disks: Disks, wish: Wish, names: set[str], timeout_s: float) -> None:
    done, deadline = {"adopt": "adopted", "discard": "discarded"}[wish], time.monotonic() + timeout_s
    while True:
        left = names.intersection(each.name for each in disks.unrecorded(wish))
        for name in sorted(names - left):
            click.echo(f"{name}  {done}")
        names = left
        if not names:
            return
        if time.monotonic() > deadline:
            raise DeadlineExceeded(
                f"{', '.join(sorted(names))}: not {done} after {timeout_s:g} s; the agent goes on, and its log says "
                "why it cannot (a snapshot with volumes on it goes after them)"
            )
        time.sleep(POLL_S)


def _disks(where: Where) -> Disks:
    if where.in_cluster:
        from agent.cli.kubectl import Kubectl

        return _OfCluster(Kubectl(where.namespace, where.context))
    if where.url:
        raise InvalidArgument("--url", "an endpoint only reads", "give --state-dir, or use kubectl quarry")
    return _OfMachine(where)


class _OfCluster:
    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster

    def unrecorded(self, wish: Wish) -> list[Found]:
        return [
            Found(each["name"], each["sizeBytes"], disk["metadata"]["name"], disk["spec"].get(wish, ()))
            for disk in self._cluster.all(DISKS)
            for each in disk.get("status", {}).get("unrecorded", ())
        ]

    def wish(self, disk: str, wish: Wish, names: Sequence[str]) -> None:
        before = next((each.wishes for each in self.unrecorded(wish) if each.disk == disk), ())
        self._cluster.patch(DISKS, disk, {"spec": {wish: [*dict.fromkeys((*before, *names))]}})


class _OfMachine:
    def __init__(self, where: Where) -> None:
        from agent.host import locks

        self._database = where.state_dir / "quarry.db"
        if not locks.is_held(where.state_dir):
            raise Unavailable(f"no agent runs on {where.state_dir}: start `quarry standalone`, or give its --state-dir")

    def unrecorded(self, wish: Wish) -> list[Found]:
        import asyncio

        return asyncio.run(self._unrecorded(wish))

    def wish(self, disk: str, wish: Wish, names: Sequence[str]) -> None:
        import asyncio

        asyncio.run(self._wish(disk, wish, names))

    async def _unrecorded(self, wish: Wish) -> list[Found]:
        from agent.model import Disk
        from agent.store.local import open_local

        store = await open_local(self._database)
        try:
            return [
                Found(each.name, each.size_bytes, disk.meta.name, getattr(disk.spec, wish))
                for disk in await store.list(Disk)
                for each in disk.status.unrecorded
            ]
        finally:
            await store.close()

    async def _wish(self, disk: str, wish: Wish, names: Sequence[str]) -> None:
        from dataclasses import replace

        from agent.model import Disk
        from agent.pools.disk_records import DiskRecords
        from agent.store.local import open_local

        def wished(now: Disk) -> Disk:
            merged = tuple(dict.fromkeys((*getattr(now.spec, wish), *names)))
            spec = replace(now.spec, adopt=merged) if wish == "adopt" else replace(now.spec, discard=merged)
            return replace(now, spec=spec)

        store = await open_local(self._database)
        try:
            records = DiskRecords(store, "")
            if (found := await records.get(disk)) is not None:
                await records.change(found, wished)
        finally:
            await store.close()
